"""Merging in one pass: counted in operations and tensors, never in seconds; and equal to the matrix of the expression."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import deltaw
from deltaw import Plan, attach, merging
from deltaw.merge import Reused, shared_names, sources
from deltaw.methods import HRA, IA3, DoRA, HiRA, LoHa, LoKr, LoRA, RoAd, SHiRA, VeRA
from deltaw.ops import Base, Chain, Dense, Diag, Eye, Hadamard, Sum, Transpose, add, chain
from deltaw.testing.tiny import Lookup, Tiny, settle, values


def stir(adapted):
    with torch.no_grad():
        for name, t in adapted.trainable().items():
            t.add_(values(*t.shape, name=name, std=0.3))
    return adapted


class Counted(TorchDispatchMode):
    """Calls of every operator with a result as large as a weight, and the memory those results lie in."""

    def __init__(self, size: int):
        super().__init__()
        self.size, self.calls, self.memory = size, [], set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.numel() >= self.size and out.device.type != "meta":
            self.memory.add(out.untyped_storage().data_ptr())
            if not any("alias" in str(r.alias_info) and not r.alias_info.is_write for r in func._schema.returns if r.alias_info):
                self.calls.append(func.__name__)
        return out


VIEWS = {"detach.default", "as_strided.default", "slice.Tensor", "view.default", "t.default", "transpose.int", "permute.default", "alias.default"}


def real(calls: list[str]) -> list[str]:
    return [c for c in calls if c not in VIEWS]


def wide(dtype=torch.float32):
    return settle(Tiny(64, 64), dtype)


def test_one_product_a_weight_and_no_other_tensor_of_its_size():
    adapted = stir(attach(wide(), Plan(LoRA(r=2))))
    merged = adapted.merge()
    with Counted(64 * 64) as seen:
        count = sum(1 for _ in merged.changed())
    assert count == 4
    assert sorted(real(seen.calls)) == ["addmm.out"] * 4 + ["empty_like.default"] * 4
    with Counted(64 * 64) as seen:
        for _ in merged.changed(Reused()):
            pass
    weights = {p.untyped_storage().data_ptr() for p in adapted.model.parameters()}
    assert sorted(set(real(seen.calls))) == ["addmm.out", "empty.memory_format"]
    assert seen.calls.count("empty.memory_format") == 1 and len(seen.memory - weights) == 1


def test_every_old_weight_is_read_once(monkeypatch):
    adapted = stir(attach(wide(), Plan(LoRA(r=2))))
    merged = adapted.merge()
    monkeypatch.setattr(merging, "BLOCK", 640)
    rows, real_addmm = [], torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda W, *a, **k: (rows.append(W.numel()), real_addmm(W, *a, **k))[1])
    for _ in merged.changed():
        pass
    assert max(rows) == 640 and sum(rows) == 4 * 64 * 64


def test_names_are_known_without_a_weight():
    model = wide()
    for method in (LoRA(r=2), DoRA(LoRA(r=2)), LoHa(r=2), RoAd(group_size=8)):
        adapted = stir(attach(model, Plan(method)))
        with torch.no_grad(), Counted(64 * 64) as seen, deltaw.ops.watch_dense() as reads:
            found = sources(adapted, shared_names(model)[1])
        bias = [f"blocks.{k}.sq.bias" for k in (0, 1)] if isinstance(method, RoAd) else []
        assert sorted(found) == sorted([f"blocks.{k}.{w}.weight" for k in (0, 1) for w in ("sq", "up")] + bias)
        assert not reads and not [c for c in real(seen.calls) if c.startswith(("mm", "addmm", "copy", "clone"))], method
        adapted.detach()


def test_the_certificate_is_of_one_pass(monkeypatch):
    adapted = stir(attach(wide(), Plan(LoRA(r=2))))
    calls, write = [], merging.write
    monkeypatch.setattr(merging, "write", lambda *a: (calls.append(a[-1] is not None), write(*a))[1])
    merged = adapted.merge(probe=torch.randn(2, 64))
    assert calls == [True] * 4 and merged.certificate.weights_changed == 4 * 64 * 64
    calls.clear()
    list(merged.changed())
    assert calls == [False] * 4


def test_a_merged_model_copies_only_what_stays(monkeypatch):
    adapted = stir(attach(wide(), Plan(LoRA(r=2), targets=["sq"])))
    merged = adapted.merge()
    copied, copy = [], nn.Parameter.__deepcopy__
    monkeypatch.setattr(nn.Parameter, "__deepcopy__", lambda self, memo: (copied.append(self), copy(self, memo))[1])
    new = merged.model()
    stay = {id(p) for n, p in adapted.model.named_parameters() if "deltaw" not in n and "sq.weight" not in n}
    assert {id(p) for p in copied} == stay
    old = {p.data_ptr() for p in adapted.model.parameters()}
    assert not old & {p.data_ptr() for p in new.parameters()} and all(p.requires_grad for p in adapted.trainable().values())


def test_shards_are_written_from_one_piece_of_memory(monkeypatch, tmp_path):
    from deltaw.files import export

    adapted = stir(attach(wide(), Plan(LoRA(r=2))))
    seen, put = [], export._put
    monkeypatch.setattr(export, "_put", lambda path, at, t: (seen.append(t.untyped_storage().data_ptr()), put(path, at, t))[1])
    adapted.merge().save(tmp_path / "m")
    own = {p.untyped_storage().data_ptr() for p in adapted.model.parameters()}
    assert len([s for s in seen if s not in own]) == 4 and len({s for s in seen if s not in own}) == 1
    from safetensors.torch import load_file

    stored = load_file(tmp_path / "m" / "model-00001-of-00001.safetensors")
    assert all(torch.equal(stored[k], v) for k, v in adapted.merge().model().state_dict().items())


METHODS = [LoRA(r=2), LoRA(r=12), DoRA(LoRA(r=2)), DoRA(VeRA(r=3)), LoHa(r=2), LoHa(r=8), HiRA(r=3), HRA(r=4), IA3(), IA3(side="in"),
           LoKr(), SHiRA(r=2), RoAd(group_size=8), DoRA(SHiRA(r=2))]  # fmt: skip


@pytest.mark.parametrize("block", [50, 1 << 20])
@pytest.mark.parametrize("where", ["linear", "embedding"])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_the_streamed_weight_is_the_matrix_of_the_expression(method, where, block, monkeypatch):
    monkeypatch.setattr(merging, "BLOCK", block)
    model = settle(Tiny() if where == "linear" else Lookup(), torch.float64)
    targets = "all-linear" if where == "linear" else ["blocks.0"]
    adapted = stir(attach(model, Plan(method, targets=targets)))
    new = dict(adapted.merge().changed())
    for a in adapted.assignments:
        dense = deltaw.convert.site_layer(adapted, a).op.dense()
        got = new[f"{a.site.name}.weight"]
        torch.testing.assert_close(got, a.site.written(dense, None)["weight"], rtol=1e-12, atol=1e-12)


class Held(Base):
    def __init__(self, w):
        self.w, self.shape = w, tuple(w.shape)

    like = property(lambda self: self.w)

    def weight(self):
        return self.w

    def __call__(self, x):
        return x @ self.w.mT.to(x.dtype)

    def rmv(self, y):
        return y @ self.w.to(y.dtype)


def expressions(dtype=torch.float64):
    W = Held(values(14, 10, name="W", dtype=dtype))
    B, A, d, c = (values(*s, name=f"{s}", dtype=dtype) for s in ((14, 3), (3, 10), (14,), (10,)))
    low = chain(B, A)
    yield W, add(W, low)
    yield W, chain(d, add(W, low))
    yield W, chain(add(W, low), c)
    yield W, chain(d, add(W, low), c)
    yield W, add(W, Hadamard(W, low))
    yield W, chain(W, Sum([Eye(10, A), Chain([Dense(A.mT), Dense(A)])]))
    yield W, chain(Sum([Eye(14, B), Chain([Dense(B), Dense(B.mT)])]), W)
    yield W, add(W, chain(d, B, A, c), 0.5 * low)
    yield W, add(W, (-2.0) * Hadamard(low, low))
    yield W, Chain([Eye(14, B, torch.tensor(2.0, dtype=dtype)), W])
    yield W, W
    yield W, add(W, Diag(d)) if W.shape[0] == W.shape[1] else chain(d, W)


@pytest.mark.parametrize("k", range(12))
@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_patterns_against_their_matrix(k, layout, monkeypatch):
    monkeypatch.setattr(merging, "BLOCK", 40)
    W, op = list(expressions())[k]
    W.w = W.w.mT.contiguous().mT if layout == "columns" else W.w
    check(W, op, W.w)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_the_other_end_of_a_tied_weight(layout, scaled, monkeypatch):
    """There the expression is the transpose of one in the transposed base."""
    monkeypatch.setattr(merging, "BLOCK", 40)
    w = values(14, 10, name="W")
    W = Held(w.mT.contiguous().mT if layout == "columns" else w)
    inner = add(Transpose(W), chain(values(10, 2, name="B"), values(2, 14, name="A")))
    check(W, Transpose(chain(values(10, name="d"), inner) if scaled else inner), W.w)


def check(W, op, old):
    want, new = op.dense(), torch.full_like(old, torch.nan)
    tally = merging.Tally()
    merging.write(op, W, old, new, tally)
    torch.testing.assert_close(new, want, rtol=1e-12, atol=1e-12)
    assert tally.changed == int((new != old).sum())
    assert tally.lost < 1e-12


@pytest.mark.parametrize("native", [True, False])
def test_low_precision_is_rounded_once(native, monkeypatch):
    if native and not merging.bfloat16_products(torch.device("cpu")):
        pytest.skip("no native bfloat16 products here")
    monkeypatch.setitem(merging._products, "cpu", native)
    W = Held(values(96, 80, name="W", dtype=torch.bfloat16))
    B, A = values(96, 8, name="B", std=0.1, dtype=torch.float32), values(8, 80, name="A", std=0.1, dtype=torch.float32)
    new, tally = torch.empty_like(W.w), merging.Tally()
    merging.write(add(W, chain(B, A)), W, W.w, new, tally)
    exact = W.w.double() + B.double() @ A.double()
    assert int((new != exact.to(torch.bfloat16)).sum()) <= 96 * 80 // 500  # ties that rounding of the product may tip
    wanted = B.double() @ A.double()
    lost = torch.linalg.vector_norm(new.double() - W.w.double() - wanted) / torch.linalg.vector_norm(wanted)
    assert abs(tally.lost - float(lost)) < 1e-5 and tally.lost > 1e-3
    naive = W.w + (B.to(torch.bfloat16) @ A.to(torch.bfloat16))
    assert int((naive != exact.to(torch.bfloat16)).sum()) > 96 * 80 // 100


def test_the_split_of_a_product_into_bfloat16_factors():
    B, A = values(40, 6, name="B", dtype=torch.float32), values(6, 30, name="A", dtype=torch.float32)
    P, Q = merging.split(B, A)
    assert P.shape == (40, 18) and P.dtype == Q.dtype == torch.bfloat16
    want = B.double() @ A.double()
    off = torch.linalg.vector_norm(P.double() @ Q.double() - want) / torch.linalg.vector_norm(want)
    assert float(off) < 2.0**-15
