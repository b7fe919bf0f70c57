"""Runs from end to end on a model made here: what is left on disk, a kill and a resume, two processes, the sentinel."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from train_kit import jsonl, pairs, tiny_home, tiny_model, tiny_tokenizer

import deltaw
from deltaw.errors import SpecError, StateMismatch
from deltaw.train import Progress, evaluate, generate, run
from deltaw.train.checkpoint import flatten, restore
from deltaw.train.curves import site_norms, ticks
from deltaw.train.sentinel import Sentinel, describe

HERE = Path(__file__).parent


def recipe(tmp_path: Path, **train) -> dict:
    settings = {
        "steps": 6,
        "batch_size": 4,
        "lr": 1e-2,
        "log_every": 2,
        "save_every": 3,
        "max_length": 64,
        "tune_allocator": False,
    }
    return {
        "data": {"path": jsonl(tmp_path / "rows.jsonl", pairs()), "eval_share": 0.2},
        "plan": {"method": {"key": "lora", "r": 4}, "targets": ["q_proj", "down_proj"]},
        "train": settings | train,
        "out": str(tmp_path / "run"),
    }


def trained(tmp_path: Path, out: str = "run", model=None, **train) -> dict[str, torch.Tensor]:
    r = recipe(tmp_path, **train) | {"out": str(tmp_path / out)}
    result = run(r, model=model or tiny_model(), tokenizer=tiny_tokenizer(), progress=False)
    return {k: v.detach().clone() for k, v in result.adapted.state().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_what_a_run_leaves(tmp_path):
    class Said(Progress):
        notes: list = []
        steps: list = []

        def note(self, text, warning=False):
            self.notes.append(text)

        def step(self, done):
            self.steps.append(done)

    model, t = tiny_model(), tiny_tokenizer()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    show = Said()
    r = recipe(tmp_path, steps=30, eval_every=10)
    first = run(r, model=model, tokenizer=t, progress=show)
    out = first.dir
    lines = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    loss = [x["loss"] for x in lines if "loss" in x]
    assert loss[-1] < 0.7 * loss[0] and [x["step"] for x in lines if "eval_loss" in x] == [10, 20, 30, 30]
    assert {"step", "loss", "lr", "grad_norm", "tokens", "tokens_per_second", "seconds", "rss_bytes"} <= set(lines[0])
    assert show.steps == list(range(1, 31)) and any("rows (prompt_completion)" in n for n in show.notes)
    assert first.train_seconds > 0 and first.tokens_per_second > 0 and first.peak_rss_bytes > 0
    summary = json.loads((out / "run.json").read_text())
    assert summary["sentinel"] == {"no_gradient": [], "unmoved": [], "not_finite": []} and len(summary["norms"]) == 4
    svg = (out / "curves.svg").read_text()
    assert svg.startswith("<svg") and "held out" in svg and "layers.1.mlp.down_proj" in svg
    assert [p.name for p in out.glob("checkpoint-*")] == ["checkpoint-30"] and not list(out.glob(".*"))
    assert not [p for p in out.rglob("*") if p.suffix in (".pt", ".pth", ".bin", ".pkl")]
    fresh = tiny_model()
    again = deltaw.load(fresh, out / "adapter")
    assert equal(dict(again.state()), dict(first.adapted.state()))
    assert model.config.use_cache and not model.training
    first.adapted.detach()
    assert equal(dict(model.state_dict()), before)
    second = run(
        out / "recipe.yaml", [], model=tiny_model(), tokenizer=t, progress=False
    )  # the resolved recipe is the run
    assert equal(dict(second.adapted.state()), dict(again.state()))
    assert (out / "previous-1" / "metrics.jsonl").exists() and (out / "adapter").exists()


KILLED = """
import os, signal, sys
sys.path.insert(0, {here!r})
from train_kit import tiny_model, tiny_tokenizer
from deltaw.train import Progress, run
class Kill(Progress):
    def step(self, done):
        if done == {at}: os.kill(os.getpid(), signal.SIGKILL)
import json
run(json.load(open({recipe!r})), model=tiny_model(attention_dropout=0.2), tokenizer=tiny_tokenizer(), progress=Kill())
"""


def environment() -> dict[str, str]:
    source = str(HERE.parent / "src")
    return os.environ | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": f"{source}:{os.environ.get('PYTHONPATH', '')}",
    }


def test_killed_and_resumed_is_the_same_to_the_bit(tmp_path):
    more = {
        "grad_accum": 2,
        "steps": 6,
        "log_every": 1,
    }  # three steps an epoch: the checkpoint lies within the second one
    r = recipe(tmp_path, **more, save_every=2)
    whole = trained(tmp_path, "whole", **more, save_every=2, model=tiny_model(attention_dropout=0.2))
    (tmp_path / "r.json").write_text(json.dumps(r))
    code = KILLED.format(here=str(HERE), at=5, recipe=str(tmp_path / "r.json"))
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    out = tmp_path / "run"
    assert (out / "checkpoint-4").is_dir() and not (out / "adapter").exists()
    half = out / ".checkpoint-5.part"
    half.mkdir()  # as a kill in the middle of writing would leave it
    model = tiny_model(attention_dropout=0.2)  # the random state has to come back as well
    result = run(r, model=model, tokenizer=tiny_tokenizer(), resume=True, progress=False)
    assert equal(dict(result.adapted.state()), whole)
    steps = [
        json.loads(x)["step"]
        for x in (out / "metrics.jsonl").read_text().splitlines()
        if "loss" in x and "eval" not in x
    ]
    assert steps == [1, 2, 3, 4, 5, 6]
    again = run(r, model=tiny_model(), tokenizer=tiny_tokenizer(), resume=True, progress=False)  # nothing is left to do
    assert equal(dict(again.adapted.state()), whole) and again.metrics["loss"] == result.metrics["loss"]
    assert torch.equal(
        *[
            load_file(d / "checkpoint-6" / "state.safetensors")[".optimizer.state.0.exp_avg"]
            for d in (out, tmp_path / "whole")
        ]
    )


def test_an_interrupt_saves_a_checkpoint_and_resumes_from_it(tmp_path):
    class Interrupt(Progress):
        def step(self, done):
            if done == 3:
                os.kill(os.getpid(), signal.SIGINT)

    more = {"steps": 6, "log_every": 1, "save_every": 0}
    whole = trained(tmp_path, "whole", **more)
    r, before = recipe(tmp_path, **more), signal.getsignal(signal.SIGINT)
    stopped = run(r, model=tiny_model(), tokenizer=tiny_tokenizer(), progress=Interrupt())
    assert any("interrupted at step" in n for n in stopped.notes) and signal.getsignal(signal.SIGINT) is before
    assert [p.name for p in (tmp_path / "run").glob("checkpoint-*")] in (["checkpoint-3"], ["checkpoint-4"])
    result = run(r, model=tiny_model(), tokenizer=tiny_tokenizer(), resume=True, progress=False)
    assert equal(dict(result.adapted.state()), whole)


def test_resume_refuses_what_would_not_be_the_same_run(tmp_path):
    trained(tmp_path)
    r = recipe(tmp_path)

    def again(change, **kw):
        return run(r, change, model=tiny_model(**kw), tokenizer=tiny_tokenizer(), resume=True, progress=False)

    with pytest.raises(StateMismatch, match="plan"):
        again(["plan.method.r=8"])
    with pytest.raises(StateMismatch, match="training data"):
        again(["data.limit=16"])
    with pytest.raises(StateMismatch, match="base|fingerprint"):
        again([], seed=1)
    with pytest.raises(StateMismatch, match="neither a checkpoint"):
        run(
            r,
            model=tiny_model(),
            tokenizer=tiny_tokenizer(),
            resume=str(tmp_path / "nowhere"),
            progress=False,
        )
    state = tmp_path / "run" / "checkpoint-6" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(StateMismatch, match="damaged"):
        again([])


def test_equal_however_the_batch_is_cut(tmp_path):
    """Rows with very different numbers of labels: only a mean over all labels of the step gives the same gradient."""
    same = {"sort_by_length": False, "steps": 3}
    one = trained(tmp_path, "one", **same, batch_size=4)
    two = trained(tmp_path, "two", **same, batch_size=1, grad_accum=4)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-4)


def test_gradient_checkpointing_packing_and_bfloat16(tmp_path):
    plain = trained(tmp_path, "plain")
    saved = trained(tmp_path, "saved", grad_checkpointing=True)
    for name in plain:
        torch.testing.assert_close(plain[name], saved[name])
    r = recipe(tmp_path, packing=True, max_length=128, batch_size=1, steps=4)
    low = tiny_model().to(torch.bfloat16)
    result = run(r, model=low, tokenizer=tiny_tokenizer(), progress=False)
    assert any(n.startswith("packed") for n in result.notes)
    assert {p.dtype for p in result.adapted.trainable().values()} == {torch.float32}
    assert any(v.abs().sum() > 0 for k, v in result.adapted.state().items() if k.endswith(".B"))


LAUNCHED = """
import atexit, json, os, pathlib, sys
sys.path.insert(0, {here!r})
def threads():
    return [p.read_text().strip() for p in pathlib.Path("/proc/self/task").glob("*/comm")]
@atexit.register  # the first to be registered is the last to run
def left(here=pathlib.Path(__file__)):
    here.with_name("left-" + os.environ["RANK"]).write_text(" ".join(t for t in threads() if "gloo" in t))
import torch; torch.set_num_threads(1)
from train_kit import tiny_model, tiny_tokenizer
from deltaw.train import run
run(json.load(open({recipe!r})), model=tiny_model(), tokenizer=tiny_tokenizer(), progress=False)
assert not pathlib.Path("/proc/self/task").exists() or any("gloo" in t for t in threads())  # they were there
"""


def test_two_processes_learn_what_one_does(tmp_path):
    r = recipe(tmp_path, steps=4, batch_size=2, sort_by_length=False, save_every=2)
    (tmp_path / "r.json").write_text(json.dumps(r))
    (tmp_path / "go.py").write_text(LAUNCHED.format(here=str(HERE), recipe=str(tmp_path / "r.json")))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv_backend=c10d",
              "--rdzv_endpoint=localhost:0", str(tmp_path / "go.py")]  # fmt: skip
    done = subprocess.run(launch, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in "01":  # a thread of the group's that outlives the interpreter may end a good run with SIGABRT
        assert (tmp_path / f"left-{rank}").read_text() == ""
    lone = run(
        r | {"out": str(tmp_path / "lone")},
        ["train.batch_size=4"],
        model=tiny_model(),
        tokenizer=tiny_tokenizer(),
        progress=False,
    )
    both = deltaw.load(tiny_model(), tmp_path / "run" / "adapter").state()
    for name, tensor in lone.adapted.state().items():
        torch.testing.assert_close(both[name], tensor, rtol=1e-3, atol=1e-4)
    tokens = [json.loads((tmp_path / d / "run.json").read_text())["tokens"] for d in ("run", "lone")]
    assert tokens[0] == tokens[1]
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoint-4").iterdir())[1:3] == [
        "random-0",
        "random-1",
    ]


def test_the_sentinel_names_what_is_not_trained(tmp_path):
    def forgetful(self, *args, **kw):  # a layer that is adapted and never called
        return args[0]

    model = tiny_model()
    model.model.layers[1].mlp.forward = forgetful.__get__(model.model.layers[1].mlp)
    result = run(recipe(tmp_path), model=model, tokenizer=tiny_tokenizer(), progress=False)
    said = [n for n in map(json.loads, (result.dir / "metrics.jsonl").read_text().splitlines()) if "warning" in n]
    assert said[0]["no_gradient"] == ["model.layers.1.mlp.down_proj.A", "model.layers.1.mlp.down_proj.B"]
    p, q = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    watch = Sentinel({"still": p, "wild": q}, 1)
    p.grad, q.grad = torch.ones(2), torch.tensor([1.0, float("nan")])
    watch.gradients()
    q.data += 1
    found = watch.step()
    assert found == {"no_gradient": [], "unmoved": ["still"], "not_finite": ["wild"]} and len(describe(found, 1)) == 2


def test_evaluate_and_generate():
    model, t = tiny_model(), tiny_tokenizer()
    rows = pairs(6)
    scores = evaluate(model, t, rows, max_new_tokens=4, batch_size=2)
    assert scores["labels"] == sum(len(r["completion"]) + 1 for r in rows) and 0 <= scores["exact_match"] <= 1
    assert scores["perplexity"] == pytest.approx(torch.tensor(scores["loss"]).exp().item(), rel=1e-5)
    assert scores["loss"] == pytest.approx(evaluate(model, t, rows, exact=False, batch_size=6)["loss"], rel=1e-5)
    prompts = ["a", "a much longer prompt than the first", [{"role": "user", "content": "b"}]]
    together = generate(model, t, prompts, max_new_tokens=5)
    assert together == [generate(model, t, [p], max_new_tokens=5)[0] for p in prompts]  # padding changes nothing
    with pytest.raises(SpecError, match="no answers to compare"):
        evaluate(model, t, [{"text": "abc"}], exact=True)


def test_from_a_directory_and_what_is_missing(tmp_path):
    r = recipe(tmp_path) | {"model": str(tiny_home(tmp_path / "base"))}
    assert run(r, ["train.steps=1"], progress=False).metrics["step"] == 1
    with pytest.raises(SpecError, match="'model' is missing"):
        run(r | {"model": None}, progress=False)
    with pytest.raises(SpecError, match="'data.path' is missing"):
        run(r | {"data": {}}, progress=False)


def test_what_cannot_be_trained_and_a_loss_that_is_lost(tmp_path):
    from transformers import BertConfig, BertModel

    r = recipe(tmp_path)
    with pytest.raises(SpecError, match="no causal language model"):
        run(
            r,
            model=BertModel(BertConfig(hidden_size=8, num_attention_heads=1, num_hidden_layers=1)),
            tokenizer=tiny_tokenizer(),
        )
    broken = tiny_model()
    broken.model.norm.weight.data.fill_(float("nan"))
    lost = run(r, model=broken, tokenizer=tiny_tokenizer(), progress=False)
    lines = [json.loads(x) for x in (lost.dir / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] is None and sum("not finite at step 1" in x.get("warning", "") for x in lines) == 1


def test_small_parts(tmp_path):
    tree = {"a": torch.ones(2), 3: [(1, None, 0.1), "x"], "n": {"m": torch.zeros(0)}}
    tensors: dict = {}
    back = restore(json.loads(json.dumps(flatten(tree, tensors))), tensors)
    assert torch.equal(back["a"], tree["a"]) and back[3] == tree[3] and back["n"]["m"].shape == (0,)
    with pytest.raises(StateMismatch, match="neither a tensor"):
        flatten({"f": print}, {})
    assert ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    adapted = deltaw.attach(tiny_model(), deltaw.Plan("lora", targets=["q_proj"]))
    with torch.no_grad():
        for p in adapted.trainable().values():
            p.normal_()
    merged = adapted.merge().model().state_dict()
    for site, norm in site_norms(adapted).items():
        moved = (merged[f"{site}.weight"] - adapted.model.get_submodule(site).weight).norm().item()
        assert norm["delta"] == pytest.approx(moved, rel=1e-4)
