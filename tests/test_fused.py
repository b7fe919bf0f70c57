"""Fused paths: equal to the walk node by node, chosen by pattern and cost, and safe where they do not apply."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import deltaw
from deltaw import Plan, attach
from deltaw.errors import SpecError
from deltaw.fused import choose, walking
from deltaw.fused.thin import Thin
from deltaw.methods import (
    ABBA,
    HRA,
    IA3,
    Asym,
    DoRA,
    Drop,
    GraLoRA,
    HiRA,
    LoHa,
    LoKr,
    LoRA,
    LoRAXS,
    SHiRA,
    TrainableTokens,
    VeRA,
)  # fmt: skip
from deltaw.ops import Affine, BlockDiag, Dense, Diag, chain, row_norm
from deltaw.sites.dense import LinearSite
from deltaw.testing.tiny import coded

M, N = 32, 24


def net(bias=True, dtype=torch.float64, opaque=False, seed=1):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(N, M, bias=bias)).to(dtype)
    return coded(model) if opaque else model


def put(method, **kw):
    model = net(**kw)
    adapted = attach(model, Plan(method, targets=["0"]))
    torch.manual_seed(2)
    for t in adapted.state().values():  # beside codes they are stored in float32
        if t.is_floating_point():
            t.data = t.data.to(torch.promote_types(kw.get("dtype", torch.float64), torch.float32))
    for t in adapted.trainable().values():
        t.data.add_(torch.randn_like(t) * 0.1)
    return model, adapted


def run(model, adapted, x, seed=5):
    torch.manual_seed(seed)
    y = model(x)
    w = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    asked = [x, *adapted.trainable().values()]
    return [y.detach(), *torch.autograd.grad((y * w).sum(), asked)]


def gap(a, b):
    return max(float((u - v).abs().max() / v.abs().max().clamp_min(1e-30)) for u, v in zip(a, b))


METHODS = {
    "lora": LoRA(r=4, alpha=3.0), "asym": Asym(r=4), "vera": VeRA(r=4), "lora_xs": LoRAXS(r=4), "loha": LoHa(r=2),
    "abba": ABBA(r1=2, r2=2, alpha=1.0), "gralora": GraLoRA(r=4, k=2), "gralora hybrid": GraLoRA(r=4, k=2, hybrid_r=2),
    "hra": HRA(r=4), "hira": HiRA(r=4), "lokr": LoKr(), "shira": SHiRA(r=2), "columns": TrainableTokens(ids=(1, 5, 7)),
    "dora": DoRA(LoRA(r=4)), "dora of loha": DoRA(LoHa(r=2)), "dora of hira": DoRA(HiRA(r=2)), "drop": Drop(LoRA(r=4), p=0.3),
    "drop of loha": Drop(LoHa(r=2), p=0.3), "dora of drop": DoRA(Drop(LoRA(r=4), p=0.3)), "ia3": IA3(),
}  # fmt: skip


@pytest.mark.parametrize("key", METHODS)
def test_value_and_gradient_equal_the_walk(key):
    for bias, opaque, tokens in itertools.product((True, False), (False, True), (1, 9, 300)):
        model, adapted = put(METHODS[key], bias=bias, opaque=opaque)
        model.train()
        x = torch.randn(2, tokens, N, dtype=torch.float64, requires_grad=True)
        got = run(model, adapted, x)
        with walking():
            want = run(model, adapted, x)
        assert gap(got, want) < 1e-10, (bias, opaque, tokens)


class Count:
    """How often each fused path was taken."""

    def __init__(self, monkeypatch):
        self.taken = []

        def spy(name, f):
            def run(*args):
                self.taken.append(name)
                return f(*args)

            return run

        monkeypatch.setattr(choose, "Thin", type("Spy", (), {"apply": staticmethod(spy("thin", Thin.apply))}))
        for name in ("pair", "joined", "columns"):
            monkeypatch.setattr(choose, name, spy(name, getattr(choose, name)))

    def of(self, model, x):
        self.taken.clear()
        model(x)
        return list(self.taken)


def test_the_pattern_and_the_cost_choose_the_path(monkeypatch):
    count = Count(monkeypatch)
    x = torch.randn(2, 300, N, dtype=torch.float64)
    expected = {
        "pair": ["lora", "asym", "loha", "abba"],  # two matrices on a plain base
        "thin": ["vera", "lora_xs", "hra", "dora", "dora of loha", "drop", "drop of loha"],
        "joined": ["hira", "shira", "dora of hira"],  # as many products as the base has: one with the sum instead
        "columns": ["columns"],
    }
    for path, keys in expected.items():
        for key in keys:
            model = put(METHODS[key])[0].train()
            assert count.of(model, x) == [path], key
    for key in ("hira", "shira", "dora of hira", "columns", "lora"):
        coded = put(METHODS[key], opaque=True)[0]
        assert set(count.of(coded, x)) <= {"thin"}, f"{key}: an opaque base has no matrix to add to"
    few = put(METHODS["columns"])[0]
    assert count.of(few, x[:1, :9]) == ["thin"]  # few tokens: W is not copied for them
    model = put(METHODS["lora"])[0]
    with walking():
        assert not count.of(model, x)
    assert not count.of(model, x[:0])  # nothing to do


def test_where_a_fused_path_does_not_apply(monkeypatch):
    model, adapted = put(METHODS["lora"], dtype=torch.float32)
    x = torch.randn(5, N)
    want = model(x)
    count = Count(monkeypatch)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == torch.bfloat16
    assert torch.allclose(torch.func.vmap(model)(x), want, atol=1e-5)
    _, tangent = torch.func.jvp(model, (x,), (x,))
    assert torch.allclose(tangent, want - model[0].bias, atol=1e-4)
    model[0].weight.requires_grad_(True)  # somebody trains the base as well
    count.taken.clear()
    model(x).sum().backward()
    assert model[0].weight.grad is not None and count.taken == ["thin"]  # over the base's own output
    model[0].weight.requires_grad_(False)
    model[0].bias.requires_grad_(True)
    model(x).sum().backward()
    assert model[0].bias.grad is not None and count.taken == ["thin"]


@pytest.mark.parametrize("key", ["lora", "dora", "hra", "loha", "vera"])
def test_second_derivatives(key):
    model, adapted = put(METHODS[key], bias=False)
    x = torch.randn(3, N, dtype=torch.float64, requires_grad=True)

    def penalty():
        (g,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), list(adapted.trainable().values()))

    with walking():
        want = penalty()
    if key == "vera":  # its frozen A needs no x, so none was kept
        with pytest.raises(SpecError, match="walking"):
            penalty()
    else:
        assert gap(penalty(), want) < 1e-10


def test_an_output_written_to_before_backward_is_a_named_error():
    model, _ = put(METHODS["dora"], bias=False)
    x = torch.randn(3, N, dtype=torch.float64)
    y = model(x)
    y *= 2.0
    with pytest.raises(SpecError, match="in place"):
        y.sum().backward()
    for method, bias in ((METHODS["dora"], True), (METHODS["lora"], False)):  # these keep nothing of their output
        model, adapted = put(method, bias=bias)
        y = model(x)
        y *= 2.0
        y.sum().backward()


def test_a_scale_of_zero_still_learns():
    """diag(d) W x with d = 0 at a row: its output is 0 and its gradient is not."""
    model, adapted = put(METHODS["dora"], bias=False)
    adapted.state()["0.g"].data[3] = 0.0
    x = torch.randn(4, N, dtype=torch.float64, requires_grad=True)
    got = run(model, adapted, x)
    with walking():
        want = run(model, adapted, x)
    assert gap(got, want) < 1e-10 and float(want[-1].abs()[3]) > 0


def saved_bytes(model, x):
    own = {t.untyped_storage().data_ptr() for t in itertools.chain(model.parameters(), model.buffers())}
    seen, alive = {}, []

    def pack(t):
        alive.append(t)
        s = t.untyped_storage()
        if s.data_ptr() not in own:
            seen[s.data_ptr()] = s.nbytes()
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        model(x)
    return sum(seen.values())


def test_what_is_kept_for_backward():
    """x once, the thin A x, and nothing else: no casts, no scaled factors, no dropout mask."""
    T, r = 64, 4
    x = torch.randn(T, N, dtype=torch.bfloat16, requires_grad=True)
    for key in ("lora", "drop"):
        model, _ = put(METHODS[key], dtype=torch.bfloat16)
        assert saved_bytes(model.train(), x) == 2 * T * (N + r), key
    model, _ = put(METHODS["asym"], dtype=torch.bfloat16)
    assert saved_bytes(model, x) == 2 * T * r  # A is frozen: x is not needed
    model, _ = put(METHODS["columns"], dtype=torch.bfloat16)
    assert saved_bytes(model, x) <= 2 * T * 3 + 8 * 3 * M + 100
    x = torch.randn(4 * T, N, dtype=torch.bfloat16, requires_grad=True)  # enough for columns of W to be changed
    T = 4 * T
    assert saved_bytes(model, x) <= 2 * T * 3 + 8 * 3 * M + 100  # three columns of x, v - v0
    model, _ = put(METHODS["dora"], bias=False, dtype=torch.bfloat16)
    y = 2 * T * M  # the output, which whoever reads it next may keep anyway
    assert saved_bytes(model, x) <= 2 * T * (N + r) + y + 4 * 3 * M


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_draws_the_same_mask(reentrant):
    model, adapted = put(METHODS["drop"])
    model.train()
    x = torch.randn(3, N, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(3)
    model(x).square().sum().backward()
    want = [p.grad.clone() for p in adapted.trainable().values()]
    for p in adapted.trainable().values():
        p.grad = None
    torch.manual_seed(3)
    checkpoint(model, x, use_reentrant=reentrant).square().sum().backward()
    assert gap([p.grad for p in adapted.trainable().values()], want) == 0


def test_what_is_kept_between_forwards_follows_every_change():
    model, adapted = put(METHODS["lora"])
    x = torch.randn(3, N, dtype=torch.float64)

    def right():
        with walking():
            want = copy.deepcopy(model)(x)
        assert torch.allclose(model(x), want, atol=1e-12)
        return want

    first = right()
    entry = adapted.entries()["0"]
    with torch.no_grad():
        entry.B.mul_(2.0)  # a value
    assert not torch.allclose(right(), first)
    entry.A = nn.Parameter(torch.randn_like(entry.A))  # another tensor
    second = right()
    with deltaw.activate(model, "default", weights=[0.5]):
        assert not torch.allclose(right(), second)
    model[0].bias = nn.Parameter(torch.randn_like(model[0].bias), requires_grad=False)
    right()
    model[0].weight.data = torch.randn_like(model[0].weight)
    right()
    new = {k: torch.randn_like(v) for k, v in model.state_dict().items()}
    swapped = torch.func.functional_call(model, new, (x,))
    model.load_state_dict(new)
    assert torch.allclose(right(), swapped, atol=1e-12)
    model.float()
    assert torch.allclose(model(x.float()).double(), swapped, atol=1e-4)
    clone = copy.deepcopy(model)
    with torch.no_grad():
        entry.B.zero_()
    assert torch.allclose(clone(x.float()).double(), swapped, atol=1e-4), "a copy has tensors of its own"


def test_row_norms_of_the_base_are_kept_until_it_changes():
    model, adapted = put(METHODS["dora"], dtype=torch.float32)
    layer = model[0]
    base = adapted.assignments[0].site.leaf().op
    B, A = torch.randn(M, 3), torch.randn(3, N)

    def right():
        got, want = row_norm(base + chain(B, A)), (layer.weight.detach() + B @ A).norm(dim=1)
        assert torch.allclose(got, want, rtol=1e-5)

    right()
    kept = base.row_square()
    assert base.row_square() is kept
    with torch.no_grad():
        layer.weight.mul_(2.0)
    right()
    layer.weight.data.mul_(3.0)  # counts no version
    right()
    layer.weight.data = torch.randn(M, N)
    right()
    layer.weight = nn.Parameter(torch.randn(M, N), requires_grad=False)
    right()
    layer.load_state_dict({k: torch.randn_like(v) for k, v in layer.state_dict().items()})
    right()


def test_row_norms_do_not_decode_an_opaque_base():
    model, _ = put(METHODS["dora"], opaque=True, dtype=torch.float32)
    x = torch.randn(3, N)
    model(x)
    with deltaw.ops.watch_dense() as seen:
        model(x).sum().backward()
    assert not seen


def test_half_precision_is_as_close_as_the_walk():
    for key in ("lora", "dora", "loha", "drop", "hra"):
        for dtype in (torch.bfloat16, torch.float16):
            model, adapted = put(METHODS[key], dtype=dtype)
            exact, reference = put(METHODS[key])
            exact.load_state_dict({k: v.double() for k, v in model.state_dict().items()})
            model.train(), exact.train()
            x = torch.randn(40, N).to(dtype)
            errors = []
            for plain in (False, True):
                with walking() if plain else torch.enable_grad():
                    got = run(model, adapted, x.clone().requires_grad_())
                want = run(exact, reference, x.double().requires_grad_())
                errors.append(gap([t.double() for t in got], want))
            assert errors[0] < 2 * errors[1] + 1e-3, (key, dtype, errors)


def test_leaves_know_their_gradients():
    torch.manual_seed(0)
    x, g = torch.randn(5, 12, dtype=torch.float64), torch.randn(5, 8, dtype=torch.float64)
    from deltaw.fused.leaves import back, grad, into

    for op in (Dense(torch.randn(8, 12).double()), BlockDiag(torch.randn(4, 2, 3).double())):
        t = op.like.clone().requires_grad_()
        (want,) = torch.autograd.grad((type(op)(t)(x) * g).sum(), t)
        assert torch.allclose(grad(op, x, g), want)
        y = torch.randn(5, 8, dtype=torch.float64)
        z = y.clone()
        into(op, z, x)
        assert torch.allclose(z, y + op(x))
        z = x.clone()
        back(op, z, g)
        assert torch.allclose(z, x + op.rmv(g))
    v = torch.randn(12, dtype=torch.float64)
    assert torch.allclose(grad(Diag(v), x, 2 * x), (2 * x * x).sum(0))


def test_an_affine_map_of_its_own_is_evaluated_too():
    """Without a session: the pattern alone decides."""
    model = net()
    base = LinearSite("0", model[0]).leaf()
    model.requires_grad_(False)
    B, A = torch.randn(M, 2, dtype=torch.float64), torch.randn(2, N, dtype=torch.float64)
    L = Affine(base.op + chain(B, A), base.bias)
    x = torch.randn(3, N, dtype=torch.float64)
    assert torch.allclose(L(x), L.walk(x), atol=1e-12)


def test_two_factors_of_different_dtypes_are_both_cast():
    """A frozen factor may be kept in another dtype than the trained one."""
    x, W = torch.randn(9, N, requires_grad=True), torch.randn(M, N)
    B, A = torch.randn(M, 2, requires_grad=True), torch.randn(2, N, dtype=torch.float64)
    y = choose.pair(x, W, None, B, A, 0.5)
    assert torch.allclose(y, x @ (W + 0.5 * B @ A.float()).mT, atol=1e-4) and y.dtype == x.dtype
    y.sum().backward()
    assert B.grad.dtype == B.dtype and torch.allclose(x.grad, (W + 0.5 * B @ A.float()).sum(0).expand_as(x), atol=1e-4)
