"""The rules engine: events counted in optimiser steps, edits that carry the optimiser's state, resumption to the bit."""

import copy
import gc

import pytest
import torch
from torch import Tensor, nn
from train_kit import jsonl, pairs, tiny_model, tiny_tokenizer

import deltaw
from deltaw.errors import SpecError, StateMismatch
from deltaw.methods.rules import Rule, View, rule
from deltaw.plan import Plan
from deltaw.rules import remap
from deltaw.spec import RULES
from deltaw.testing.tiny import Tiny, settle, values


class Shuffle(Rule):
    """Turns the rows of A over every `every` steps, after slow steps in between; its memory is a sum of gradients."""

    __module__ = "train_kit"  # any importable module: a rule's key is the last word of it

    every: int = 2
    factor: float = 0.5

    def start(self, view: View) -> dict[str, Tensor]:
        return {"sum": torch.zeros(view.p.A.shape), "calls": torch.zeros((), dtype=torch.int64)}

    def watches(self, view: View) -> bool:
        return view.step % self.every == 0

    def before(self, view: View) -> None:
        view.s["calls"] += 1
        view.s["sum"] += view.p.A.grad
        view.damp("B", self.factor)

    def after(self, view: View) -> None:
        if view.step % self.every == 0:
            A = view.p.A
            order = torch.arange(A.numel()).view(A.shape).flip(0)
            view.set("A", A.detach().flip(0) + 1e-3 * view.draw("A").normal(tuple(A.shape), 1.0), source=order)
        else:
            view.s["norm"] = view.gradient().norm()


Shuffle = rule(paper="(a test)")(Shuffle)
PLAN = Plan(deltaw.methods.LoRA(r=2), targets=["sq", "up"], rules=(Shuffle(every=2),))


def batch(k: int) -> tuple[Tensor, Tensor]:
    return values(4, 16, name=f"x{k}", dtype=torch.float32), values(4, 16, name=f"y{k}", dtype=torch.float32)


def steps(model, optimizer, first, last, split=1):
    for k in range(first, last):
        for x, y in zip(*(t.split(4 // split) for t in batch(k))):
            ((model(x) - y).square().mean() / split).backward()
        optimizer.step()
        optimizer.zero_grad()


def fresh():
    return settle(Tiny(), torch.float32)


def test_plan_round_trip_and_registry():
    assert Plan.from_dict(PLAN.to_dict()) == PLAN and PLAN.to_dict()["rules"] == [{"key": "train_kit", "every": 2, "factor": 0.5}]
    assert Plan("lora", rules="train_kit").rules == (Shuffle(),)
    with pytest.raises(SpecError, match="no rule 'train_kid'.*train_kit"):
        Plan("lora", rules=["train_kid"])
    assert "train_kit" in RULES


def test_events_count_optimiser_steps_not_forwards():
    found = []
    for split in (1, 4):
        model = fresh()
        adapted = deltaw.attach(model, PLAN)
        optimizer = adapted.optimizer(lr=1e-2)
        steps(model, optimizer, 0, 5, split)
        with torch.no_grad():
            model(batch(0)[0])
        memory = optimizer.state_dict()["rules"]
        assert int(memory["step"]) == 5 and all(int(s["calls"]) == 5 for s in memory["0.train_kit"].values())
        found.append(adapted.state() | {f"{n}.sum": s["sum"] for n, s in memory["0.train_kit"].items()})
    for name, t in found[0].items():
        torch.testing.assert_close(found[1][name], t, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("update", ["adamw", "lora_plus"])
def test_resume_is_exact(tmp_path, update):
    plan = Plan(PLAN.method, targets=PLAN.targets, rules=PLAN.rules, update=update)
    model = fresh()
    whole = deltaw.attach(model, plan)
    optimizer = whole.optimizer(lr=1e-2)
    steps(model, optimizer, 0, 3)
    whole.save(tmp_path / "a")
    torch.save(optimizer.state_dict(), tmp_path / "o.pt")
    steps(model, optimizer, 3, 6)
    other = fresh()
    again = deltaw.load(other, tmp_path / "a")
    second = again.optimizer(lr=1e-2)
    second.load_state_dict(torch.load(tmp_path / "o.pt", weights_only=True))
    steps(other, second, 3, 6)
    for name, t in whole.state().items():
        assert torch.equal(again.state()[name], t), name
    ours, theirs = second.state_dict()["rules"], optimizer.state_dict()["rules"]
    for name, s in theirs["0.train_kit"].items():
        assert all(torch.equal(ours["0.train_kit"][name][word], t) for word, t in s.items())
    plain = deltaw.attach(fresh(), Plan(PLAN.method, targets=PLAN.targets)).optimizer(lr=1e-2)
    with pytest.raises(StateMismatch, match="expected 0.train_kit"):
        again.optimizer(lr=1e-2).load_state_dict(plain.state_dict())


def test_a_killed_training_run_resumes_to_the_bit(tmp_path):
    from deltaw.train import run

    recipe = {
        "data": {"path": jsonl(tmp_path / "d.jsonl", pairs())},
        "plan": {"method": {"key": "lora", "r": 2}, "targets": ["q_proj", "v_proj"], "rules": ["train_kit"]},
        "train": {"steps": 6, "batch_size": 2, "grad_accum": 2, "save_every": 3, "keep": 5, "tune_allocator": False},
    }

    def go(out, **kw):
        model, data = tiny_model(), {**recipe, "out": str(tmp_path / out)}
        return run(data, model=model, tokenizer=tiny_tokenizer(), progress=False, **kw).adapted.state()

    want = go("whole")
    (tmp_path / "cut").mkdir()
    (tmp_path / "whole" / "checkpoint-3").rename(tmp_path / "cut" / "checkpoint-3")
    for name, t in go("cut", resume=True).items():
        assert torch.equal(t, want[name]), name


def test_the_gradient_of_the_weight_is_that_of_a_trained_weight():
    for split in (1, 2):
        model, twin = fresh(), fresh()
        optimizer = deltaw.attach(model, PLAN).optimizer(lr=0.0)
        steps(model, optimizer, 0, 1, split)
        x, y = batch(0)
        (twin(x) - y).square().mean().backward()
        for name, s in optimizer.state_dict()["rules"]["0.train_kit"].items():
            torch.testing.assert_close(s["norm"], twin.get_submodule(name).weight.grad.norm(), rtol=1e-5, atol=0)


def test_watching_leaves_nothing_behind():
    model = fresh()
    optimizer = deltaw.attach(model, PLAN).optimizer(lr=1e-2)
    assert any(m._forward_hooks for m in model.modules())
    steps(model, optimizer, 0, 1)
    assert not any(m._forward_hooks for m in model.modules())  # the second step asks for no gradient
    steps(model, optimizer, 1, 2)
    assert any(m._forward_hooks for m in model.modules())
    del optimizer
    gc.collect()
    assert not any(m._forward_hooks for m in model.modules())


def test_a_step_that_no_forward_preceded_says_so():
    model = fresh()
    adapted = deltaw.attach(model, PLAN)
    (model(batch(0)[0])).square().mean().backward()
    optimizer = adapted.optimizer(lr=1e-2)
    with pytest.raises(SpecError, match="blocks.0.*make the optimiser before the first forward"):
        optimizer.step()
    with pytest.raises(SpecError, match="call backward first"):
        optimizer.step(lambda: 0.0)


def test_damped_steps_are_those_of_a_lower_rate():
    moved = []
    for factor, lr in ((0.25, 1e-2), (1.0, 2.5e-3)):
        model = fresh()
        adapted = deltaw.attach(model, Plan(PLAN.method, targets=["sq"], rules=Shuffle(every=99, factor=factor)))
        before = copy.deepcopy({k: t for k, t in adapted.trainable().items() if k.endswith("B")})
        steps(model, adapted.optimizer(lr=lr), 0, 1)
        moved.append([adapted.state()[k] - t for k, t in before.items()])
    torch.testing.assert_close(moved[0], moved[1])


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad,
                                  lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9)])  # fmt: skip
def test_remap_carries_what_stays_and_drops_what_leaves(make):
    p = nn.Parameter(torch.arange(6.0))
    optimizer = make([p], lr=0.1)
    p.grad = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    optimizer.step()
    old = {k: v.clone() for k, v in optimizer.state[p].items() if isinstance(v, Tensor)}
    remap(optimizer.state[p], p.shape, torch.tensor([5, -1, 0, 0]))
    for key, t in optimizer.state[p].items():
        want = old[key] if t.dim() == 0 else torch.stack([old[key][5], torch.zeros(()), old[key][0], old[key][0]])
        assert torch.equal(t, want), key


def test_remap_refuses_what_it_does_not_understand():
    p = nn.Parameter(torch.zeros(4, 6))
    with pytest.raises(SpecError, match="'row' has shape"):
        remap({"row": torch.zeros(4, 1)}, p.shape, torch.zeros(3, dtype=torch.int64))
