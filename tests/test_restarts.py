"""Function-preserving restarts: what folds into the weight, what the optimiser keeps, what files, exports and resumes make of it."""

import math

import pytest
import torch
from torch import nn
from train_kit import jsonl, pairs, tiny_model, tiny_tokenizer

import deltaw
from deltaw.errors import SpecError, StateMismatch
from deltaw.methods import BitFit, DoRA, Drop, LoRA, VeRA
from deltaw.methods.init.switchlora import SwitchLoRA as Start
from deltaw.methods.restarts import jagged_cosine
from deltaw.methods.rules.periodic_lora import PeriodicLoRA
from deltaw.methods.rules.relora import ReLoRA
from deltaw.methods.rules.switchlora import SwitchLoRA
from deltaw.methods.switching import bounds
from deltaw.plan import Plan
from deltaw.testing.closed import closed
from deltaw.testing.restarts import Run
from deltaw.testing.tiny import Tiny, settle, values

RELORA, PERIODIC, SWITCH = ReLoRA(4, prune=1.0, restart_warmup=0), PeriodicLoRA(4, 0.3), SwitchLoRA(4, 50, 2)
SWITCHED = {"init": "switchlora", "update": "switchlora"}
EACH = [
    pytest.param(RELORA, {}, id="relora"),
    pytest.param(PERIODIC, {}, id="periodic_lora"),
    pytest.param(SWITCH, SWITCHED, id="switchlora"),
]


@pytest.mark.parametrize("key", ["relora", "periodic_lora", "switchlora"])
def test_closed_form(key):
    assert "closed form" in closed("rules", key).check()


def events(optimizer):
    """The engine of an optimiser's rules, from the hooks it has installed."""
    return next(h.__self__ for h in optimizer._optimizer_step_post_hooks.values())


def across(run, act):
    """W' before and after a rule's turn, without the optimiser's step."""
    run.step()
    engine = events(run.opt)
    run.opt.zero_grad()
    run.loss(run.model(torch.eye(run.n, dtype=run.dtype)).mT).backward()
    before = run.weight()
    engine.optimizer, engine.step = run.opt, 8
    with torch.no_grad():
        for rule, views in engine.rules:
            getattr(rule, act)(views)
    return before, run.weight()


LAW8 = [
    ("after_all", RELORA, {}),
    ("after_all", RELORA, {"init": "pissa"}),
    *(("after_all", PeriodicLoRA(4, mu), {}) for mu in (0.0, 0.1, 0.7, 1.0)),
    ("before_all", SWITCH, SWITCHED),
]


@pytest.mark.parametrize("act, rule, kw", LAW8)
@pytest.mark.parametrize("dtype, near", [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_the_weight_is_the_same_before_and_after(act, rule, kw, dtype, near):
    run = Run(rule, 12, 16, 8, lr=0.1, dtype=dtype, **kw)
    old = run.factors()
    before, after = across(run, act)
    assert any(not a.equal(b) for a, b in zip(run.factors(), old))
    assert float((after - before).abs().max()) <= near * float(before.abs().max())
    assert torch.equal(run.model[0].weight, run.W0)  # the base itself


def test_every_cycle_adds_at_most_r_to_the_rank():
    for rule in (RELORA, PeriodicLoRA(4, 0.0), PeriodicLoRA(4, 0.5)):
        run, seen = Run(rule, 11, 9, 2), []
        for k in run.steps(24):
            change = run.weight() - run.W0
            rank = int((torch.linalg.svdvals(change) > 1e-9).sum())
            restarts = (k + 1) // 4
            assert rank <= min(2 * (restarts + 1), 9) and run.entry.moved == min(2 * restarts, 9)
            seen.append(rank)
        assert seen[2] == 2 and seen[6] == 4 and seen[-1] == 9
        B, A = run.adapted.to_lora().factors["0"]
        assert B.shape[1] == run.entry.moved + 2 == 11  # min(m, n) + r
        torch.testing.assert_close(B @ A, run.weight() - run.W0, rtol=0, atol=1e-12)
        with torch.no_grad():
            merged = run.adapted.merge().model()(torch.eye(9, dtype=torch.float64)).mT
        torch.testing.assert_close(merged, run.weight(), rtol=0, atol=1e-12)
        run.adapted.detach()
        assert torch.equal(run.model[0].weight, run.W0) and set(run.model.state_dict()) == {"0.weight"}


@pytest.mark.parametrize("m, n", [(5, 8), (8, 5), (6, 6)])
def test_a_constant_grows_and_becomes_a_matrix(m, n):
    model = nn.Sequential(nn.Linear(n, m, bias=False)).double()
    entry = deltaw.attach(model, Plan(LoRA(r=2), targets=["0"])).entries()["0"]
    total = torch.zeros(m, n, dtype=torch.float64)
    for k in range(6):
        B, A = values(m, 2, name=f"B{k}"), values(2, n, name=f"A{k}")
        entry.move(B, A)
        total += B @ A
        torch.testing.assert_close(entry.get("offset.B") @ entry.get("offset.A"), total, rtol=0, atol=1e-13)
        assert entry.moved == min(2 * (k + 1), m, n)
    kept = entry.get("offset.A" if m > n else "offset.B")
    assert torch.equal(kept, torch.eye(min(m, n), dtype=torch.float64)) and not kept.requires_grad
    B.zero_()  # what was moved is no view of what it came from
    torch.testing.assert_close(entry.get("offset.B") @ entry.get("offset.A"), total, rtol=0, atol=1e-13)


@pytest.mark.parametrize("rule, kw", EACH)
@pytest.mark.parametrize("peft", [True, False])
def test_files_keep_a_constant_that_has_grown(tmp_path, rule, kw, peft):
    run = Run(rule, 12, 14, 6, dtype=torch.float32, **kw)
    for _ in run.steps(9):
        pass
    run.adapted.save(tmp_path / "a", peft=peft)
    run.adapted.save(tmp_path / "b", peft=peft)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    assert (tmp_path / "a" / "adapter_config.json").exists() == peft
    other = Run(rule, 12, 14, 6, dtype=torch.float32, **kw)
    other.adapted.detach()
    again = deltaw.load(other.model, tmp_path / "a")
    assert again.entries()["0"].moved == run.entry.moved > 6
    for name, t in run.adapted.state().items():
        assert torch.equal(again.state()[name], t), name
    assert torch.equal(other.weight(), run.weight())
    run.adapted.to_lora().save(tmp_path / "plain")
    again.detach()
    deltaw.load(other.model, tmp_path / "plain")
    torch.testing.assert_close(other.weight(), run.weight())


def test_peft_reads_a_constant_that_has_grown(tmp_path):
    peft = pytest.importorskip("peft")
    model = tiny_model()
    adapted = deltaw.attach(model, Plan(LoRA(r=2, alpha=4.0), targets=["q_proj"], rules=ReLoRA(2, restart_warmup=0)))
    opt, x = adapted.optimizer(1e-2), torch.arange(12).view(1, 12)
    for _ in range(5):
        opt.zero_grad()
        model(input_ids=x, labels=x).loss.backward()
        opt.step()
    adapted.save(tmp_path / "a")
    with torch.no_grad():
        want = model(input_ids=x).logits
        adapted.detach()
        got = peft.PeftModel.from_pretrained(model, tmp_path / "a")(input_ids=x).logits
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_a_constant_in_a_file_has_a_rank(tmp_path):
    import json

    run = Run(RELORA, dtype=torch.float32)
    for _ in run.steps(5):
        pass
    run.adapted.save(tmp_path / "a", peft=False)
    card = json.loads((tmp_path / "a" / "deltaw.json").read_text())
    assert card["sites"][0]["offset"] == 2
    run.adapted.detach()
    for rank, words in (
        (1, "expected shape"),
        (0, "has a rank; found 0"),
        ("2", "has a rank; found '2'"),
        (10**9, "has a rank"),
    ):
        card["sites"][0]["offset"] = rank
        (tmp_path / "a" / "deltaw.json").write_text(json.dumps(card))
        with pytest.raises(StateMismatch, match=words):
            deltaw.load(run.model, tmp_path / "a")
    assert not list(deltaw.adapters(run.model))


@pytest.mark.parametrize("rule, kw", [*EACH, pytest.param(ReLoRA(4, 8, 0.5, 3), {}, id="pruned")])
@pytest.mark.parametrize("stop", [5, 8])
def test_resume_is_exact(tmp_path, rule, kw, stop):
    whole = Run(rule, 12, 14, 6, dtype=torch.float32, **kw)
    for k in whole.steps(13):
        if k + 1 == stop:
            whole.adapted.save(tmp_path / "a")
            torch.save(whole.opt.state_dict(), tmp_path / "o.pt")
    second = Run(rule, 12, 14, 6, dtype=torch.float32, **kw)
    second.adapted.detach()
    second.adapted = deltaw.load(second.model, tmp_path / "a")
    second.opt = second.adapted.optimizer(second.lr)
    second.opt.load_state_dict(torch.load(tmp_path / "o.pt", weights_only=True))
    for _ in second.steps(13 - stop):
        pass
    for name, t in whole.adapted.state().items():
        assert torch.equal(second.adapted.state()[name], t), name
    for word, t in whole.memory().items():
        assert torch.equal(second.memory()[word], t), word


@pytest.mark.parametrize("rule", ["relora", "switchlora"])
def test_a_killed_training_run_resumes_to_the_bit(tmp_path, rule):
    from deltaw.train import run

    rules, more = (
        ([{"key": "relora", "every": 2, "restart_warmup": 1}], {})
        if rule == "relora"
        else ([{"key": "switchlora", "every": 4, "rest": 2}], SWITCHED)
    )
    recipe = {
        "data": {"path": jsonl(tmp_path / "d.jsonl", pairs())},
        "plan": {
            "method": {"key": "lora", "r": 8, "alpha": 1.0},
            "targets": ["q_proj", "v_proj"],
            "rules": rules,
            **more,
        },
        "train": {"steps": 6, "batch_size": 2, "grad_accum": 2, "save_every": 3, "keep": 5, "tune_allocator": False},
    }

    def go(out, **kw):
        data = {**recipe, "out": str(tmp_path / out)}
        return run(data, model=tiny_model(), tokenizer=tiny_tokenizer(), progress=False, **kw).adapted.state()

    want = go("whole")
    (tmp_path / "cut").mkdir()
    (tmp_path / "whole" / "checkpoint-3").rename(tmp_path / "cut" / "checkpoint-3")
    for name, t in go("cut", resume=True).items():
        assert torch.equal(t, want[name]), name
    assert any(k.endswith("offset.B") and t.shape[1] > 8 for k, t in want.items())


def moments(run, name):
    state = run.opt.state[run.entry.get(name)]
    return [t for k, t in state.items() if k != "step"], state.get("step")


def test_moments_are_dropped_or_pruned_or_kept():
    run = Run(ReLoRA(5, prune=1.0, restart_warmup=0))
    for _ in run.steps(5):
        pass
    assert all(not run.opt.state.get(run.entry.get(k)) for k in "AB")
    run = Run(PERIODIC)
    for _ in run.steps(4):
        pass
    assert all(not run.opt.state.get(run.entry.get(k)) for k in "AB")
    run = Run(ReLoRA(5, prune=0.999, restart_warmup=0), 90, 100, 20)
    for _ in run.steps(5):
        pass
    for name in "AB":
        (m, v), step = moments(run, name)
        assert torch.equal(m != 0, v != 0) and int(step) == 5  # an entry loses both
        assert 0 < int((m != 0).sum()) < 12  # of 1800 and 2000, 2 are expected
    run = Run(ReLoRA(5, 10, prune=1.0, restart_warmup=0))
    for k in run.steps(10):
        if k == 4:
            assert all((t != 0).all() for n in "AB" for t in moments(run, n)[0]) and not run.factors()[0].any()
    assert all(not run.opt.state.get(run.entry.get(k)) for k in "AB")


def test_the_rate_warms_up_again_after_a_restart():
    """Against torch's own optimiser under the same factors of the learning rate, in a plain loop."""
    short, long = Run(ReLoRA(4, prune=1.0, restart_warmup=2)), Run(ReLoRA(4, prune=1.0, restart_warmup=0))
    for k in range(11):
        for group in long.opt.param_groups:
            group["lr"] = long.lr * (min(k % 4 / 2, 1.0) if k >= 4 else 1.0)
        short.step()
        long.step()
        torch.testing.assert_close(short.weight(), long.weight(), rtol=0, atol=1e-12)


def test_the_jagged_cosine():
    opt = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule, rates = jagged_cosine(opt, 40, 10, 4, 3, 0.1), []
    for _ in range(40):
        rates.append(opt.param_groups[0]["lr"] / 2.0)
        opt.step()
        schedule.step()

    def cosine(t):
        return 0.1 + 0.9 * (1 + math.cos(math.pi * (t - 4) / 36)) / 2

    assert rates[:5] == [0.0, 0.25, 0.5, 0.75, 1.0] and rates[9] == pytest.approx(cosine(9))
    for restart in (10, 20, 30):
        assert rates[restart : restart + 4] == pytest.approx(
            [0, cosine(restart + 3) / 3, 2 * cosine(restart + 3) / 3, cosine(restart + 3)]
        )
        assert rates[restart + 6] == pytest.approx(cosine(restart + 6))
    with pytest.raises(SpecError, match="ends before the first restart"):
        jagged_cosine(opt, 40, 10, 11, 3)


# ---- switchlora


def test_switches_conserve_the_vectors_and_rest_their_partners():
    run = Run(SwitchLoRA(6, 10**9, 3), 14, 12, 8, alpha=1.0, **SWITCHED)
    before = {k: v.clone() for k, v in run.memory().items()}
    rest, counts = {"A": [0] * 8, "B": [0] * 8}, []
    for _ in range(25):
        (B, A), pools, head = run.factors(), run.memory(), int(run.memory()["head"])
        old = {"A": A, "B": B.T}
        old_pools = {k: pools[f"pool.{k}"].clone() for k in "AB"}
        run.step()
        (B, A), pools = run.factors(), run.memory()
        new, c = {"A": A, "B": B.T}, (int(pools["head"]) - head) % 4
        counts.append(c)
        for k, partner in ("AB", "BA"):
            fresh = [i for i in range(8) if int(pools[f"rest.{partner}"][i]) == 2 and rest[partner][i] == 0]
            assert len(fresh) == c
            gone = [j for j in range(4) if not torch.equal(pools[f"pool.{k}"][j], old_pools[k][j])]
            assert sorted(gone) == sorted((head + j) % 4 for j in range(c))
            for j in range(
                c
            ):  # the pool holds what left, untouched; what came is what was first in the pool, after one step
                i, j = (
                    sorted(fresh, key=lambda i: (i - (int(pools["slot"]) - c + (0 if k == "A" else 4))) % 8)[j],
                    (head + j) % 4,
                )
                assert torch.equal(pools[f"pool.{k}"][j], old[k][i])
                assert float((new[k][i] - old_pools[k][j]).abs().max()) <= 1.01 * run.lr
            for i in range(8):  # a resting partner does not move, and knows nothing; all others move
                rests = rest[partner][i] > 0 or i in fresh
                assert torch.equal(new[partner][i], old[partner][i]) == rests
                m = run.opt.state[run.entry.get(partner)]["m"]
                assert (m[i] if partner == "A" else m[:, i]).any() != rests
            rest[partner] = pools[f"rest.{partner}"].tolist()
    assert sum(counts) > 20 and before["pool.A"].shape == (4, 12) and before["pool.B"].shape == (4, 14)


def test_counts_of_steps_are_per_vector():
    run = Run(SwitchLoRA(6, 10**9, 3), 14, 12, 8, alpha=1.0, **SWITCHED)
    for _ in run.steps(9):
        rests = run.memory()
    for name, axis in (("A", 1), ("B", 0)):
        steps = run.opt.state[run.entry.get(name)]["step"].squeeze(axis)
        assert steps.shape == (8,) and len(set(steps.tolist())) > 1
        resting = rests[f"rest.{name}"]
        assert torch.equal(steps[resting > 0].long(), 3 - resting[resting > 0])  # a count goes on from 0 at the switch


def test_the_number_of_switches_has_the_stated_mean():
    run = Run(SwitchLoRA(20, 300, 1), 40, 36, 24, alpha=1.0, **SWITCHED)
    seen, want, slot = 0, 0.0, 0
    for t in range(400):
        run.step()
        now = int(run.memory()["slot"])
        seen, slot, want = seen + (now - slot) % 24, now, want + 24 / 20 * 0.3 ** ((t + 1) / 300)
    assert abs(seen - want) < 4 * (400 * 0.25) ** 0.5  # four standard deviations of the rounding, at most
    assert seen > 200


def test_nothing_can_switch_at_full_rank():
    run = Run(SwitchLoRA(4, 100, 2), 8, 10, 8, alpha=1.0, **SWITCHED)
    for _ in run.steps(5):
        assert not run.memory()["rest.A"].any() and run.entry.moved == 8


def test_switchlora_under_adamw_and_with_accumulated_gradients():
    """The rule needs no update rule of its own; it acts once per optimiser step."""
    found = []
    for split in (1, 4):
        model = settle(Tiny(), torch.float64)
        adapted = deltaw.attach(
            model, Plan(LoRA(r=6, alpha=1.0), targets=["sq", "up"], rules=SwitchLoRA(4, 99, 2), init="switchlora")
        )
        opt = adapted.optimizer(1e-2)
        for k in range(7):
            opt.zero_grad()
            for x, y in zip(values(8, 16, name=f"x{k}").chunk(split), values(8, 16, name=f"y{k}").chunk(split)):
                ((model(x) - y).square().mean() / split).backward()
            opt.step()
        found.append(adapted.state())
    for name, t in found[0].items():
        torch.testing.assert_close(found[1][name], t, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("m, n, r", [(60, 40, 16), (40, 90, 20)])
def test_the_start_of_switchlora(m, n, r):
    a, b = bounds(m, n, r, 1 / r)
    g = 1 / math.sqrt(3)
    assert a == pytest.approx(math.sqrt(3) * (math.sqrt(m) * r / n**1.5) ** 0.25 * math.sqrt(g))
    assert b == pytest.approx(math.sqrt(3) * (r / math.sqrt(m * n)) ** 0.25 * math.sqrt(g))
    run = Run(SwitchLoRA(), m, n, r, alpha=1.0, init=Start())
    B, A = run.factors()
    for t, bound in ((A, a), (B, b), (run.memory()["pool.A"], a), (run.memory()["pool.B"], b)):
        assert 0.97 * bound < t.abs().max() <= bound and t.std() == pytest.approx(bound / math.sqrt(3), rel=0.06)
    torch.testing.assert_close(run.weight(), run.W0, rtol=0, atol=1e-14)
    other = Run(SwitchLoRA(), m, n, r, alpha=6.0, init=Start())
    torch.testing.assert_close(other.s * other.factors()[0] @ other.factors()[1], run.s * B @ A)
    assert float(run.s * (B @ A).std()) == pytest.approx(1 / math.sqrt(3 * n), rel=0.1)


# ---- what may be folded


@pytest.mark.parametrize("method", [LoRA(r=4), Drop(LoRA(r=4), p=0.5), DoRA(LoRA(r=4)), BitFit(LoRA(r=4))])
def test_wrappers_that_see_only_the_sum_may_be_folded(method):
    model = settle(Tiny(), torch.float64)
    adapted = deltaw.attach(model, Plan(method, targets=["sq"], rules=ReLoRA(2, restart_warmup=0)))
    opt, x = adapted.optimizer(1e-2), values(4, 16, name="x")
    model.train()
    for _ in range(2):
        opt.zero_grad()
        model(x).square().mean().backward()
        opt._optimizer_step_post_hooks, hooks = type(opt._optimizer_step_post_hooks)(), opt._optimizer_step_post_hooks
        opt.step()
        opt._optimizer_step_post_hooks = hooks
        model.eval()
        before = model(x)
        for hook in hooks.values():
            hook(opt, (), {})
        torch.testing.assert_close(model(x), before, rtol=0, atol=1e-12)
        model.train()
    assert all(e.moved == 4 for e in adapted.entries().values())


def test_what_cannot_be_folded_says_so():
    for method, words in (
        (VeRA(r=4), "has no such A and B|shared by all"),
        ("ia3", "has none"),
        ("hira", "no such A and B"),
    ):
        model = settle(Tiny(), torch.float32)
        opt = deltaw.attach(model, Plan(method, targets=["sq"], rules=ReLoRA(1, restart_warmup=0))).optimizer(1e-2)
        model(values(4, 16, name="x", dtype=torch.float32)).square().mean().backward()
        with pytest.raises(SpecError, match=words):
            opt.step()
    for rule in (
        ReLoRA(0),
        ReLoRA(4, 6),
        ReLoRA(4, prune=2.0),
        ReLoRA(4, restart_warmup=4),
        PeriodicLoRA(4, 1.5),
        SwitchLoRA(8, 10, 5),
    ):
        with pytest.raises(SpecError, match="found"):
            Run(rule)


def test_modules_trained_in_full_are_left_alone_and_tables_restart_as_they_start():
    model = settle(nn.Sequential(nn.Embedding(9, 7), nn.Linear(7, 5)), torch.float64)
    plan = Plan(LoRA(r=2), targets=["0"], train_modules=["1"], rules=ReLoRA(2, restart_warmup=0, prune=1.0))
    adapted = deltaw.attach(model, plan)
    opt, x = adapted.optimizer(1e-2), torch.arange(6).view(1, 6)
    for _ in range(2):
        before = {k: t.detach().clone() for k, t in adapted.state().items()}
        opt.zero_grad()
        model(x).square().mean().backward()
        opt.step()
    entry = adapted.entries()["0"]
    assert entry.moved == 2 and not entry.get("A").any() and entry.get("B").std() > 0.5
    assert any(not torch.equal(adapted.state()[k], t) for k, t in before.items() if k.startswith("1"))


def test_both_ends_of_a_tied_weight_restart_together():
    model = tiny_model().double()
    adapted = deltaw.attach(
        model, Plan(LoRA(r=2), targets=["embed_tokens", "lm_head"], rules=ReLoRA(2, restart_warmup=0))
    )
    opt, x = adapted.optimizer(1e-2), torch.arange(12).view(1, 12)
    engine = events(opt)
    for _ in range(3):
        opt.zero_grad()
        model(input_ids=x, labels=x).loss.backward()
        opt.step()
        with torch.no_grad():
            before = model(input_ids=x).logits
            engine.optimizer = opt
            for rule, views in engine.rules:
                engine.step = 2
                rule.after_all(views)
            torch.testing.assert_close(model(input_ids=x).logits, before, rtol=0, atol=1e-10)
    (entry,) = adapted.entries().values()
    assert entry.moved >= 6 and len(adapted.assignments) == 2


@pytest.mark.parametrize(
    "rule, kw",
    [(ReLoRA(40, prune=1.0, restart_warmup=4), {}), (PeriodicLoRA(40, 0.2), {}), (SwitchLoRA(12, 400, 5), SWITCHED)],
)
def test_low_rank_updates_sum_to_a_change_of_high_rank(rule, kw):
    """Towards a target of full rank: one pair of factors keeps the error of the best rank-r change at least, restarts go below."""
    lr, r = 0.05, 4
    run = Run(rule, 12, 10, r, lr=lr, **kw)
    aim = values(12, 10, name="restarts aim")
    tail = float(torch.linalg.svdvals(aim - run.W0)[r:].square().sum())
    run.loss = lambda W: (W - aim).square().sum()
    plain = Run((), 12, 10, r, lr=lr)
    plain.loss = run.loss
    for k in range(400):
        for each in (run, plain):
            for group in each.opt.param_groups:
                group["lr"] = lr * (1 - k / 400)
            each.step()
    assert float(plain.loss(plain.weight())) >= tail * (1 - 1e-9)
    assert float(run.loss(run.weight())) < 0.1 * tail
