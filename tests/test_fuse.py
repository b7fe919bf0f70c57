"""Adapters exchanged in the weights of a copy: the base comes back bit for bit, and the user's model is never touched."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn

import deltaw
from deltaw import Fused, Plan, attach
from deltaw.errors import NotMergeable, SpecError, StateMismatch, TargetError
from deltaw.fuse import entries
from deltaw.methods import IA3, DoRA, LoRA, ReFT, SHiRA
from deltaw.ops import Zero, chain, delta
from deltaw.testing.tiny import Conv1D, Tied, Tiny, settle, values

DTYPES = [torch.float32, torch.bfloat16, torch.float64]


def stir(adapted, seed: int = 0, std: float = 0.3):
    with torch.no_grad():
        for name, t in adapted.trainable().items():
            t.add_(values(*t.shape, name=f"{seed}{name}", std=std))
    return adapted


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in model.state_dict().items() if "deltaw" not in k}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    raw = torch.uint8
    return list(a) == list(b) and all(torch.equal(a[k].reshape(-1).view(raw), b[k].reshape(-1).view(raw)) for k in a)


def many(model: nn.Module):
    """Two sparse ones that overlap, two dense ones of which one is on some of the layers, and one that moves biases."""
    plans = {
        "s1": Plan(SHiRA(r=2)), "s2": Plan(SHiRA(r=3, mask="wm"), seed=4), "lora": Plan(LoRA(r=2)),
        "dora": Plan(DoRA(LoRA(r=2)), targets=["sq"]), "ia3": Plan(IA3(), targets=["sq"]),
    }  # fmt: skip
    return {name: stir(attach(model, plan, name), k) for k, (name, plan) in enumerate(plans.items())}


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_sequence_of_switches_is_the_adapter_and_comes_back_bit_for_bit(dtype):
    model = settle(Tiny(), dtype)
    with torch.no_grad():
        model.blocks[0].sq.weight.view(-1)[:3] = torch.tensor([-0.0, 0.0, 1e-38])  # subtracting would lose these
    adapted = many(model)
    before, live = bits(model), Fused(model)
    x = values(5, 16, name="x", dtype=dtype)
    fused = {n: a.merge(probe=x).model() for n, a in adapted.items()}
    draw = random.Random(0)
    for step in range(40):
        name = draw.choice([*adapted, None])
        live.switch(name)
        assert live.active == name
        want = before if name is None else bits(fused[name])
        assert all(torch.allclose(v.double(), want[k].double(), rtol=1e-6) for k, v in bits(live.model).items()), name
        if step % 5 == 0:
            live.restore()
            assert live.active is None and same(bits(live.model), before)
            live.switch(name)
        if name is not None and dtype != torch.bfloat16:
            with deltaw.activate(model, name):
                torch.testing.assert_close(live.model(x), model(x))
    live.switch(None)
    assert same(bits(live.model), before) and same(bits(model), before)
    assert not any("forward" in vars(m) or "deltaw" in m._modules for m in live.model.modules())


def test_a_sparse_delta_costs_its_entries_and_nothing_else_is_written():
    model = settle(Tiny(), torch.float32)
    many(model)
    live = Fused(model)
    live.prepare("s1")
    count = sum(2 * (a.site.shape[0] + a.site.shape[1]) for a in next(iter(deltaw.adapters(model))).assignments)
    report = live.ready["s1"].report()
    assert report == {"patches": 4, "sparse": 4, "entries": count, "bytes": count * (8 + 4 + 4)}
    assert live.ready[live.prepare("lora")].report()["sparse"] == 0
    base = bits(live.model)
    live.switch("s1")
    changed = sum(int((v != base[k]).sum()) for k, v in bits(live.model).items())
    assert 0 < changed <= count


def test_a_switch_between_sparse_adapters_writes_only_where_either_is(monkeypatch):
    model = settle(Tiny(), torch.float32)
    many(model)
    live = Fused(model)
    live.prepare("s1"), live.prepare("s2")
    live.switch("s1")
    written: list[int] = []
    put = Tensor.put_
    monkeypatch.setattr(Tensor, "put_", lambda self, i, v: (written.append(len(i)), put(self, i, v))[1])
    monkeypatch.setattr(Tensor, "copy_", None)
    live.switch("s2")
    assert sum(written) == sum(live.ready[n].report()["entries"] for n in ("s1", "s2"))


def test_two_dense_adapters_write_each_weight_once(monkeypatch):
    model = settle(Tiny(), torch.float32)
    stir(attach(model, Plan(LoRA(r=2)), "a"), 1), stir(attach(model, Plan(LoRA(r=2)), "b"), 2)
    live = Fused(model)
    live.prepare("a"), live.prepare("b")
    live.switch("a")
    written: list[int] = []
    put = Tensor.copy_
    monkeypatch.setattr(Tensor, "copy_", lambda self, v: (written.append(v.numel()), put(self, v))[1])
    live.switch("b")
    assert len(written) == 4 and sum(written) == live.ready["b"].report()["entries"]


def test_every_layout_of_a_weight():
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.c = nn.Embedding(9, 8), Conv1D(6, 8)
            self.k = nn.Conv1d(6, 4, 3, padding=1)

        def forward(self, ids):
            return self.k(self.c(self.e(ids)).mT)

    model, ids = settle(Parts(), torch.float64), torch.arange(9).reshape(3, 3)
    for method in (SHiRA(r=1), LoRA(r=1), DoRA(LoRA(r=1))):
        adapted = stir(attach(model, Plan(method, targets=["e", "c", "k"])))
        live, before = Fused(model), bits(model)
        live.switch(adapted)
        torch.testing.assert_close(live.model(ids), model(ids))
        assert live.ready["default"].report()["sparse"] == (3 if isinstance(method, SHiRA) else 0)
        live.restore()
        assert same(bits(live.model), before)
        adapted.detach()


def test_a_part_trained_in_full():
    model, x = settle(Tiny(), torch.float32), values(3, 16, name="x", dtype=torch.float32)
    adapted = stir(attach(model, Plan(SHiRA(r=1), targets=["up"], train_modules=["0.sq"])))
    live, before = Fused(model), bits(model)
    live.switch(adapted)
    torch.testing.assert_close(live.model(x), model(x))
    assert live.ready["default"].report()["patches"] == 4 and live.ready["default"].report()["sparse"] == 2
    live.restore()
    assert same(bits(live.model), before)


def test_tied_weights_stay_tied_or_are_refused():
    model, ids = settle(Tied(), torch.float64), torch.arange(6).reshape(2, 3)
    both = stir(attach(model, Plan(LoRA(r=2), targets=["table", "head"]), "both"))
    live = Fused(model)
    live.switch(both)
    assert live.model.head.weight is live.model.table.weight
    torch.testing.assert_close(live.model(ids), model(ids))
    both.detach()
    one = stir(attach(model, Plan(SHiRA(r=1), targets=["head"]), "one"))
    with pytest.raises(NotMergeable, match="this end of a tied weight"):
        live.switch(one)
    assert live.active == "both"
    live.restore()
    assert same(bits(live.model), bits(model))


def test_a_directory_is_prepared_from_the_base_while_another_adapter_is_in(tmp_path):
    model, x = settle(Tiny(), torch.float32), values(3, 16, name="x", dtype=torch.float32)
    s, a = stir(attach(model, Plan(SHiRA(r=2)), "s"), 1), stir(attach(model, Plan(LoRA(r=2)), "a"), 2)
    s.save(tmp_path / "s"), a.save(tmp_path / "a")
    with deltaw.activate(model, "s"):
        want_s = model(x)
    want_a = model(x)
    plain = settle(Tiny(), torch.float32)
    live = Fused(plain)
    for path, want in ((tmp_path / "s", want_s), (str(tmp_path / "a"), want_a), (tmp_path / "s", want_s)):
        live.switch(path)
        assert live.active == str(path)
        torch.testing.assert_close(live.model(x), want)
    assert live.ready[str(tmp_path / "s")].report()["sparse"] == 4
    live.restore()
    assert same(bits(live.model), bits(plain)) and "_deltaw" not in vars(live.model)


def test_an_adapter_trained_on_is_prepared_again_and_forgotten_ones_are_gone():
    model, x = settle(Tiny(), torch.float32), values(3, 16, name="x", dtype=torch.float32)
    a = stir(attach(model, Plan(SHiRA(r=2)), "a"))
    live = Fused(model)
    for seed in (1, 2):
        live.switch("a")
        first = live.ready["a"]
        live.switch("a")
        assert live.ready["a"] is first
        torch.testing.assert_close(live.model(x), model(x))
        stir(a, seed)
    assert live.prepare(a, "again") == "again"
    a.detach()
    live.switch("again")
    live.forget("again")
    assert live.active is None and same(bits(live.model), bits(model))
    with pytest.raises(TargetError, match="ready"):
        live.forget("again")


def test_an_interrupted_switch_is_mended_by_restoring(monkeypatch):
    model = settle(Tiny(), torch.float32)
    many(model)
    live, before = Fused(model), bits(model)
    live.prepare("s1"), live.prepare("lora")
    live.switch("s1")
    real, left = deltaw.fuse.Patch.write, iter(range(6))

    def write(self, new):
        if next(left, None) is None:
            raise KeyboardInterrupt
        real(self, new)

    monkeypatch.setattr(deltaw.fuse.Patch, "write", write)
    with pytest.raises(KeyboardInterrupt):
        live.switch("s2")
    monkeypatch.undo()
    assert live.active is None
    live.restore()
    assert same(bits(live.model), before)


def test_what_cannot_be_switched_says_why_and_changes_nothing():
    model = settle(Tiny(), torch.float32)
    many(model)
    attach(model, Plan(ReFT(r=1), targets="all-blocks"), "edit")
    live = Fused(model)
    live.switch("s1")
    before = bits(live.model)
    with pytest.raises(TargetError, match="nearest: lora"):
        live.switch("lorra")
    with pytest.raises(NotMergeable):
        live.switch("edit")
    other = settle(Tiny(), torch.float32)
    with torch.no_grad():
        other.blocks[0].sq.weight.mul_(2)
    with pytest.raises(StateMismatch, match="another base"):
        live.switch(attach(other, Plan(LoRA(r=2)), "far"))
    assert live.active == "s1" and same(bits(live.model), before)
    gone = attach(other, Plan(LoRA(r=2)), "gone")
    gone.detach()
    with pytest.raises(SpecError, match="detached"):
        live.switch(gone)


def test_positions_and_values_are_the_operator():
    model = settle(Tiny(), torch.float64)
    adapted = stir(attach(model, Plan(SHiRA(r=2))))
    for a in adapted.assignments:
        W = a.site.leaf().op
        D = delta(deltaw.convert.site_layer(adapted, a).op, W)
        where, new = entries(D)
        dense = torch.zeros(D.shape, dtype=torch.float64).view(-1)
        dense[where] = new.detach()
        assert torch.equal(dense.view(D.shape), D.dense()) and len(where.unique()) == len(where)
    assert entries(chain(torch.ones(2, 1), torch.ones(1, 2))) is None
    assert entries(Zero(2, 2, torch.ones(1))) is None


def test_sparse_and_unordered_or_repeated_positions():
    model = nn.Sequential(nn.Linear(5, 4, bias=False))
    adapted = stir(attach(model, Plan(SHiRA(r=1))))
    entry = adapted.entries()["0"]
    for positions in (torch.tensor([7, 3, 19, 0, 5, 1, 2, 9, 11]), torch.tensor([7, 7, 19, 0, 5, 1, 2, 9, 11])):
        with torch.no_grad():
            entry.get("I").copy_(positions)
        live = Fused(model)
        live.switch("default")
        (patch,) = live.ready["default"].patches
        assert (patch.where is None) == (len(positions.unique()) < len(positions))
        torch.testing.assert_close(live.model[0].weight, adapted.merge().model()[0].weight)
