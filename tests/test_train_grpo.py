"""GRPO on adapters through TRL: what a run leaves, the reference without a second model, gradients in closed form, resume."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
import types
from pathlib import Path

import pytest
import torch

pytest.importorskip("trl")
from train_kit import jsonl, pairs, tiny_home, tiny_model, tiny_tokenizer  # noqa: E402

import deltaw  # noqa: E402
from deltaw import Plan  # noqa: E402
from deltaw.cli import main  # noqa: E402
from deltaw.errors import MissingExtra, SpecError  # noqa: E402
from deltaw.methods import LoRA  # noqa: E402
from deltaw.study.checks.stable_rank import stable_rank  # noqa: E402
from deltaw.testing.laws.base import push  # noqa: E402
from deltaw.train import Progress, Recipe, gym, reward, rewards, run, shaping  # noqa: E402
from deltaw.train.grpo import Policy, Reference  # noqa: E402

NO_GYM = importlib.util.find_spec("reasoning_gym") is None
needs_gym = pytest.mark.skipif(NO_GYM, reason="needs reasoning-gym")


@reward
def even(completion_ids, **_):
    """Denser than a right answer: the share of tokens with an even number. A test's reward."""
    return [sum(i % 2 == 0 for i in ids) / len(ids) for ids in completion_ids]


def recipe(tmp_path, grpo=None, out="run", **train) -> dict:
    (tmp_path / "rows.jsonl").exists() or jsonl(tmp_path / "rows.jsonl", pairs(12))
    settings = {"steps": 4, "batch_size": 8, "lr": 1e-2, "log_every": 1, "save_every": 0, "tune_allocator": False}
    return {
        "data": {"path": str(tmp_path / "rows.jsonl"), "chat": False},
        "plan": {"method": {"key": "lora", "r": 4}, "targets": ["q_proj", "down_proj"]},
        "grpo": {"generations": 4, "max_new_tokens": 6, "rewards": ["even"], **(grpo or {})},
        "train": settings | train,
        "out": str(tmp_path / out),
    }


def trained(r, model=None, **kw):
    return run(r, model=model or tiny_model(), tokenizer=tiny_tokenizer(), progress=False, **kw)


def state(result):
    return {k: v.detach().clone() for k, v in result.adapted.state().items()}


def policy(tmp_path, grpo=None, plan=None, tokenizer=None, model=None, **train):
    """A trainer that has not started; the adapter has moved already."""
    r = Recipe.of(recipe(tmp_path, grpo, **train))
    adapted = deltaw.attach(model or tiny_model(), plan or r.the_plan())
    push(adapted, 0.05)
    return Policy(adapted, r, tmp_path / "run", tokenizer or tiny_tokenizer(), Progress())


def test_rewards_rise_and_what_a_run_leaves(tmp_path):
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    r = recipe(tmp_path, {"beta": 0.01, "generations": 8}, steps=30, batch_size=32, lr=3e-2, schedule="constant")
    result = trained(r, model)
    out = result.dir
    lines = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    scores = [x["reward"] for x in lines if "reward" in x]
    gain = (sum(scores[-5:]) - sum(scores[:5])) / 5  # of noise each of the two means has 0.016
    assert len(scores) == 30 and gain > 0.15, scores
    assert {"loss", "kl", "entropy", "completions/mean_length", "tokens", "seconds", "lr"} <= set(lines[0])
    assert abs(lines[0]["kl"]) < 1e-5 and lines[-1]["kl"] > 1e-4, "the first policy is the base"
    summary = json.loads((out / "run.json").read_text())
    assert summary["sentinel"] == {"no_gradient": [], "unmoved": [], "not_finite": []} and summary["tokens"] > 0
    again = deltaw.load(tiny_model(), out / "adapter")
    assert all(torch.equal(v, result.adapted.state()[k]) for k, v in again.state().items())
    assert ">reward<" in (out / "curves.svg").read_text()
    assert "forward" not in model.__dict__ and model.config.use_cache and not model.training
    assert not [p for p in out.rglob("*") if p.suffix in (".pt", ".pth", ".bin", ".pkl") or p.name == "README.md"]
    result.adapted.detach()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    same = trained(out / "recipe.yaml")  # the resolved recipe is the run
    assert all(torch.equal(v, again.state()[k]) for k, v in state(same).items())


def test_the_reference_is_the_base_and_no_second_model(tmp_path):
    """Log-probabilities under the trainer's reference against a model of its own without an adapter."""
    trainer = policy(tmp_path, {"beta": 0.1})
    assert isinstance(trainer.ref_model, Reference) and trainer.beta == 0.1
    trainer.model.train()
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    base = tiny_model()
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    T = batch["completion_ids"].shape[1]
    with torch.no_grad():
        logp = (
            base(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
        )
    got = batch["ref_per_token_logps"]
    real = batch["completion_mask"].bool()
    torch.testing.assert_close(got[real], logp[:, -T:][real], rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        mine = (
            trainer.model(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None])
        )
    assert (mine[..., 0][:, -T:] - got)[real].abs().max() > 1e-2, "and the policy is another one"
    assert trainer.model.training and not deltaw.session.session(trainer.model).off


def test_the_gradient_in_closed_form(tmp_path):
    """loss="bnpo", first step: - sum over tokens of A_i log p_t / tokens, plus beta times the KL term, written out here."""
    trainer = policy(tmp_path, {"beta": 0.3, "loss": "bnpo"})
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer.compute_loss(trainer.model, batch).backward()
    trained = trainer.adapted.trainable()
    got = {k: p.grad.clone() for k, p in trained.items()}
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    T, real = batch["completion_ids"].shape[1], batch["completion_mask"].float()
    logits = trainer.adapted.model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    logp = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0][:, -T:]
    ref = batch["ref_per_token_logps"]
    ratio = (logp - logp.detach()).exp()
    kl = ratio * ((ref - logp).exp() - (ref - logp) - 1)  # TRL corrects the KL term by the ratio
    want = ((-ratio * batch["advantages"][:, None] + 0.3 * kl) * real).sum() / real.sum()
    grads = torch.autograd.grad(want, list(trained.values()))
    for (k, g), w in zip(got.items(), grads):
        torch.testing.assert_close(g, w, rtol=1e-3, atol=1e-6, msg=k)
    assert sum(float(g.norm()) for g in grads) > 1e-3


def test_advantages_are_those_of_the_shaper(tmp_path):
    trainer = policy(tmp_path)
    trainer.model.train()
    torch.manual_seed(3)
    out = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    said = [ids[mask.bool()].tolist() for ids, mask in zip(out["completion_ids"], out["completion_mask"])]
    scores = torch.tensor(even(said))
    assert scores.view(2, 4).std(1).min() > 0
    torch.testing.assert_close(out["advantages"], shaping.advantages(scores, 4))


def test_the_optimiser_is_the_adapters_own(tmp_path):
    plan = Plan(LoRA(r=4), targets=["q_proj"], update="lora_plus")
    trainer = policy(tmp_path, plan=plan)
    made = trainer.create_optimizer()
    assert len(made.param_groups) == 2 and made.param_groups[0]["lr"] != made.param_groups[1]["lr"]
    assert {id(p) for g in made.param_groups for p in g["params"]} == {
        id(p) for p in trainer.adapted.trainable().values()
    }


@pytest.mark.parametrize("grpo", [{"beta": 0.05, "unlikeliness": 0.25}, {"iterations": 2}])
def test_resumed_is_the_same_to_the_bit(tmp_path, grpo):
    """12 questions, 2 a step: the run passes into a second epoch, and is resumed there."""
    settings = {"steps": 8, "save_every": 2, "keep": 9}
    whole = trained(recipe(tmp_path, grpo, **settings))
    again = trained(recipe(tmp_path, grpo, out="again", **settings), resume=whole.dir / "checkpoint-6")
    a, b = state(whole), state(again)
    assert all(torch.equal(a[k], b[k]) for k in a) and all(a[k].abs().max() > 0 for k in a)
    third = trained(recipe(tmp_path, grpo, out="again", **settings), resume=whole.dir / "checkpoint-4")
    assert all(torch.equal(a[k], v) for k, v in state(third).items())
    logs = [[json.loads(x) for x in (r.dir / "metrics.jsonl").read_text().splitlines()] for r in (whole, third)]
    told = [[(x["step"], x["reward"], x["tokens"]) for x in log if "reward" in x and x["step"] > 4] for log in logs]
    assert told[0] == told[1] and len(told[0]) == 4 // grpo.get("iterations", 1)


def test_the_same_run_as_with_peft(tmp_path):
    """TRL's own trainer on PEFT's LoRA from the same start: the same completions, and the same factors after six steps."""
    peft = pytest.importorskip("peft")
    import datasets
    import trl
    from safetensors.torch import load_file

    from deltaw.train.adapting import settings
    from deltaw.train.grpo import questions

    jsonl(tmp_path / "rows.jsonl", pairs(60))
    r = Recipe.of(recipe(tmp_path, {"beta": 0.1}, steps=6, grad_accum=2, lr=5e-3, weight_decay=0.0))
    model = tiny_model()
    adapted = deltaw.attach(model, r.the_plan())
    adapted.save(tmp_path / "start")
    adapted.detach()
    trained(r, model).adapted.save(tmp_path / "end")
    theirs = peft.PeftModel.from_pretrained(tiny_model(), tmp_path / "start", is_trainable=True)
    arguments = trl.GRPOConfig(
        **settings(r.train, tmp_path / "theirs"),
        bf16=False,
        gradient_checkpointing=False,
        num_generations=4,
        max_completion_length=6,
        beta=0.1,
    )
    rows = datasets.Dataset.from_list(questions(r, tiny_tokenizer())[0])
    trl.GRPOTrainer(theirs, [even], args=arguments, train_dataset=rows, processing_class=tiny_tokenizer()).train()
    tensors, start = (load_file(tmp_path / where / "adapter_model.safetensors") for where in ("end", "start"))
    other = dict(theirs.named_parameters())  # Adam divides tiny gradients by their own size: rounding grows to 1e-5
    for k, v in tensors.items():
        torch.testing.assert_close(
            v,
            other[k.replace(".weight", ".default.weight")].detach(),
            rtol=0,
            atol=1e-4,
            msg=lambda text, k=k: f"{k}: {text}",
        )
        assert (v - start[k]).abs().max() > 5e-3


# ---- rewards and what they see


CHAT = [[{"role": "user", "content": q}] for q in ("hello", "say aaaa", "x")]


@pytest.mark.parametrize("prompts", [["hello", "say aaaa", "x"], CHAT], ids=["text", "chat"])
def test_rewards_see_the_tokens_that_the_trainer_sees(tmp_path, prompts):
    trainer = policy(tmp_path)
    found = rewards.prompt_ids(trainer.processing_class, prompts)
    assert found == trainer._tokenize_prompts(prompts)[0]
    run = rewards.Run(trainer.adapted, trainer.processing_class, None, batch_size=2, temperature=0.7)
    said = [[97, 98], [97, 98, 99, 100, 256], [101]]
    got = run.mean_logp(prompts, said)
    for n in range(3):  # one by one, without padding
        ids = torch.tensor([found[n] + said[n]])
        with torch.no_grad():
            logp = (trainer.adapted.model(input_ids=ids).logits[0, :-1] / 0.7).log_softmax(-1)
        own = logp.gather(1, ids[0, 1:, None])[-len(said[n]) :]
        assert got[n] == pytest.approx(float(own.mean()), abs=1e-4)
    H = rewards.find("stable_rank", run)(prompts=prompts, completion_ids=said)
    base = tiny_model()
    for n in range(3):
        ids = torch.tensor([found[n] + said[n]])
        states = base.model(input_ids=ids).last_hidden_state[0, -len(said[n]) :]
        assert H[n] == pytest.approx(stable_rank(states), rel=1e-3)


def test_unlikely_answers_keep_more(tmp_path):
    trainer = policy(tmp_path)
    run = rewards.Run(trainer.adapted, trainer.processing_class, None, batch_size=4)
    said = [[97, 98], [99, 256], [100], [101, 102, 103]] * 2
    shaped = rewards.Unlikely(run, 4, 0.5)
    prompts = ["one"] * 4 + ["two"] * 4
    told = {}
    ones = shaped(lambda completions, **_: [1.0, 0.0, None, 1.0] * 2)
    got = ones(prompts=prompts, completion_ids=said, completions=said, log_metric=lambda k, v: told.update({k: v}))
    want = shaping.unlikeliness(torch.ones(8), run.mean_logp(prompts, said), 4, 0.5)
    assert [g for g in got if g] == pytest.approx([float(want[i]) for i in (0, 3, 4, 7)])
    assert got[1] == 0 and got[2] is None and list(told.values()) == [4 / 6], "the metric shows the reward as it was"
    with pytest.raises(SpecError, match="side by side"):
        ones(prompts=["one", "two"] * 4, completion_ids=list(said), completions=said)


def test_exact_and_functions_of_modules(monkeypatch):
    assert rewards.exact(["a b ", "b"], answer=["a b", "a"]) == [1.0, 0.0]
    assert rewards.exact([[{"role": "assistant", "content": "y"}]], answer=["y"]) == [1.0]
    module = types.ModuleType("my_rewards")
    module.half = lambda completions, **_: [0.5] * len(completions)
    monkeypatch.setitem(sys.modules, "my_rewards", module)
    assert rewards.find("my_rewards:half", None)(["x", "y"]) == [0.5, 0.5]
    for name, text in [
        ("my_rewards:nothing", "has no attribute"),
        ("no_such_module:f", "No module"),
        ("exakt", "nearest: exact"),
    ]:
        with pytest.raises(SpecError, match=text):
            rewards.find(name, None)
    with pytest.raises(SpecError, match="two rewards are called 'exact'"):
        exact = lambda completions, **_: []  # noqa: E731
        exact.__name__ = "exact"
        reward(exact)


@needs_gym
def test_tasks_of_reasoning_gym():
    known = gym.names()
    assert len(known) > 90 and "letter_counting" in known
    made = gym.Task("word_sequence_reversal", {"min_words": 3, "max_words": 3}, seed=5, size=4)
    again = gym.Task("word_sequence_reversal", {"min_words": 3, "max_words": 3}, seed=6, size=3)
    assert [e["question"] for e in made.entries[1:]] == [e["question"] for e in again.entries], "a function of seed + i"
    right = made.entries[2]["answer"]
    assert made.score(f" {right}\n", 2) == 1 == made.score(f"I think <answer>{right}</answer>.", 2)
    assert made.score(f"{right} and more", 2) < 1 and made.score(right, 1) < 1 and made.score("", 2) == 0
    assert not [name for name in sys.modules if name.split(".")[0] == "reasoning_gym"]
    with pytest.raises(SpecError, match="nearest: letter_counting"):
        gym.Task("leter_counting")
    with pytest.raises(SpecError, match="no setting 'minwords'; nearest: min_words"):
        gym.Task("letter_counting", {"minwords": 3})
    with pytest.raises(SpecError, match="refuses"):
        gym.Task("word_sequence_reversal", {"min_words": 0})


def test_without_reasoning_gym_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(gym, "GYM", "no_such_gym")
    with pytest.raises(MissingExtra, match="pip install --no-deps reasoning-gym"):
        gym.Task("letter_counting")


# ---- the recipe


@needs_gym
def test_the_command_trains_on_a_task(tmp_path, capsys):
    r = recipe(tmp_path, {"task": "letter_counting", "questions": 6, "rewards": None}, steps=1)
    r |= {"model": str(tiny_home(tmp_path / "base"))}
    del r["data"], r["grpo"]["rewards"]
    Recipe.of(r).save(tmp_path / "r.yaml")
    assert main(["train", str(tmp_path / "r.yaml"), "grpo.task.min_words=3", "grpo.task.max_words=4", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["metrics"]["rewards/task/mean"] >= 0 and (tmp_path / "run" / "adapter" / "deltaw.json").is_file()


@pytest.mark.parametrize(
    "more, text",
    [
        (["grpo.generations=5"], "must divide train.batch_size x train.grad_accum"),
        (["grpo.task=letter_counting"], "either grpo.task"),
        (["data.path=null"], "either grpo.task"),
        (["train.packing=true"], "train.packing is for supervised"),
        (["grpo.iterations=2", "train.save_every=3"], "multiple of grpo.iterations"),
        (["grpo.rewards=task"], "the reward 'task' is that of grpo.task"),
        (["grpo.generation=4"], "no key 'grpo.generation'; nearest: grpo.generations"),
        (["grpo.task.min_words=3"], "a task needs at least"),
        (["plan.targets=[lm_head]"], "would not be trained; exclude it"),
        (["data.format=text"], "'text' is missing"),
        (["plan.init=lora_ga"], "'lora_ga' is measured on rows with labels"),
    ],
)
def test_a_recipe_that_cannot_be_followed(tmp_path, more, text):
    with pytest.raises(SpecError, match=text):
        run(
            recipe(tmp_path),
            more,
            model=tiny_model(tie_word_embeddings=False),
            tokenizer=tiny_tokenizer(),
            progress=False,
        )


@needs_gym
def test_the_benchmark_runs(tmp_path, capsys):
    file = Path(__file__).parents[1] / "benchmarks" / "grpo.py"
    spec = importlib.util.spec_from_file_location("benchmark_grpo", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    words = [
        "--quick",
        "--model",
        str(tiny_home(tmp_path / "base")),
        "--variants",
        "plain,unlikeliness",
        "--out",
        str(tmp_path),
    ]
    record = json.loads(module.main(words).read_text())
    assert [r["variant"] for r in record["runs"]] == ["plain", "unlikeliness"] and record["quick"]
    for r in record["runs"]:
        assert len(r["history"]) == 2 and 0 <= r["after"]["exact"] <= r["after"]["mean"] <= 1
    assert "exact 0.00 -> 0.00" in capsys.readouterr().out
