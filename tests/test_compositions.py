"""Every structure inside every wrapper: the laws hold, also over an opaque base, or it is refused with the reason."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import deltaw
from deltaw import testing
from deltaw.errors import SpecError
from deltaw.methods import (
    BOFT,
    HRA,
    IA3,
    OFT,
    BitFit,
    DoRA,
    Drop,
    Full,
    Gate,
    LNTuning,
    LoHa,
    LoRA,
    ReFT,
    RoAd,
    SHiRA,
    XLoRA,
)
from deltaw.methods.gating import Gated
from deltaw.ops import row_norm
from deltaw.spec import METHODS
from deltaw.testing import oracles
from deltaw.testing.laws import Case
from deltaw.testing.laws.base import close, gap, push
from deltaw.testing.tiny import Codes, coded

WRAPPERS = {"dora": DoRA, "drop": lambda m: Drop(m, p=0.25), "gate": Gate, "bitfit": BitFit}
UNDONE = ("deft", "hra", "lorma", "osf", "paca", "sst", "trainable_tokens", "trp")
"""What starts as the base because its tensors, none of them 0, undo each other."""
INNER = {f"{k}-{i}": m for k in METHODS if METHODS[k].axis == "structure" for i, m in enumerate(oracles.instances(METHODS[k]))}
PAIRS = [(w, k) for w in WRAPPERS for k in INNER]
LAWS = (
    "forward_is_affine_of_dense", "count_is_the_formula", "gradients_reach_what_is_trained", "fused_is_the_walk",
    "merges_as_certified", "saves_and_loads_bitwise", "two_adapters_add", "base_stays_opaque",
)  # fmt: skip


def refusal(method) -> str | None:
    """Why the wrapper does not take it: found out before the model is touched."""
    case = Case(method)
    model = case.tiny()
    keys = list(model.state_dict())
    try:
        case.attach(model)
    except SpecError as error:
        assert list(model.state_dict()) == keys
        return str(error)
    return None


def coded_and_plain(case):
    """A model whose linear layers are opaque, and one whose layers hold what those decode to."""
    opaque, plain = coded(case.tiny()).eval(), case.tiny()
    for name, module in opaque.named_modules():
        if isinstance(module, Codes):
            plain.get_submodule(name).weight.data.copy_(module.decode())
    return opaque, plain


@pytest.mark.parametrize("word, key", PAIRS, ids=[f"{w}-{k}" for w, k in PAIRS])
def test_every_structure_in_every_wrapper(word, key):
    inner = INNER[key]
    method = WRAPPERS[word](inner)
    why = refusal(method)
    if inner.sites != "weight":
        assert why and "change of a weight" in why
        return
    case = Case(inner)
    ((_, L, _),) = case.layers(case.attach(case.one()), case.x())
    if why and not isinstance(L, deltaw.ops.Affine):
        assert word == "dora" or not isinstance(L, Gated), "a delta at some of the tokens can be dropped and gated"
        assert word != "bitfit" and "depends on the whole input" in why
        return
    if word == "dora" and why:
        assert "cancels the row scaling" in why
        model = case.one()
        adapted = case.attach(model)
        model.train()  # lonas scales rows in training alone
        ((_, L, _),) = case.layers(adapted, case.x())
        assert isinstance(L.op.parts[0], deltaw.ops.Diag)
        return
    assert why is None, why
    for law in LAWS:
        result = testing.run_law(method, law, testing.LAWS[law].dtypes[0])
        assert result.outcome != "failed", f"{law}, {result.dtype}: {result.detail}"
    case = Case(method, torch.float32)
    opaque, plain = coded_and_plain(case)
    a, b = case.attach(opaque, move=False), case.attach(plain, move=False)
    with torch.no_grad():
        for name, t in a.state().items():
            t.copy_(b.state()[name])
    push(a), push(b)
    close("opaque and plain", opaque(case.x()), plain(case.x()), 2e-6)


@pytest.mark.parametrize("wrap", [DoRA, Drop, Gate])
@pytest.mark.parametrize("inner, words", [
    (XLoRA(ranks=(2, 2), hidden_size=16), "depends on the whole input"), (ReFT(r=2), "acts on a stream"),
    (Full(), "acts on a module"), (LNTuning(), "acts on a norm"),
], ids=["xlora", "reft", "full", "ln_tuning"])  # fmt: skip
def test_what_is_no_change_of_a_weight_is_refused(wrap, inner, words):
    assert words in refusal(wrap(inner))


@pytest.mark.parametrize("method, words", [
    (DoRA(DoRA()), "adds nothing"), (Gate(Gate()), "adds nothing"), (DoRA(IA3()), "cancels the row scaling"),
    (DoRA(BOFT()), "cancels the row scaling"), (DoRA(Gate(DoRA())), "tensor 'g'"), (Gate(IA3(), g0=0.0), "both start at 0"),
])  # fmt: skip
def test_compositions_without_a_meaning_say_so(method, words):
    assert words in refusal(method)


@pytest.mark.parametrize("method", [
    Drop(DoRA(LoRA(r=2))), Gate(DoRA(HRA(r=2))), Drop(Gate(BitFit(RoAd(group_size=8)))), DoRA(Gate(LoHa(r=2))),
    BitFit(DoRA(SHiRA(r=2))), Gate(Drop(OFT(block_size=4))),
], ids=str)  # fmt: skip
def test_wrappers_in_wrappers(method):
    for law in (*LAWS, "compiled_is_eager", "rows_take_turns", "pickles_and_copies", "config_round_trip"):
        result = testing.run_law(method, law, testing.LAWS[law].dtypes[0])
        assert result.outcome != "failed", f"{law}: {result.detail}"


def test_a_scaled_row_has_no_effect_under_dora():
    """The reason for the refusal: with c the norm of diag(l) V, diag(g / c) diag(l) V does not depend on |l|."""
    W, scales = torch.randn(4, 3, dtype=torch.float64), torch.rand(2, 4, dtype=torch.float64) + 0.5
    same = [(s[:, None] * W) / (s[:, None] * W).norm(dim=1, keepdim=True) for s in scales]
    assert gap(*same) < 1e-12


def test_dora_around_a_rotation_keeps_the_norms():
    """Rows keep their norm under a rotation of the input, so g is what the norms become, and the rest is direction."""
    case = Case(DoRA(OFT(block_size=4, terms=0)))
    ((_, L, W),) = case.affine(case.attach(case.one()), case.x())
    assert gap(row_norm(L.op.parts[1] if len(L.op.parts) == 2 else deltaw.ops.chain(*L.op.parts[1:])), W.dense().norm(dim=1)) < 1e-12


# ---- the gate


def test_a_closed_gate_is_the_base_and_opens():
    """g0 = 0: bit for bit the base; the first step moves the gates alone, the second everything."""
    case = Case(Gate(LoRA(r=3), g0=0.0))
    model, x = case.tiny(), case.x()
    y = model(x)
    a = case.attach(model, move=False)
    assert torch.equal(model(x), y) and all(bool(t.any()) == (not k.endswith("gate")) for k, t in a.state().items())
    for step in range(2):
        before = {k: t.detach().clone() for k, t in a.trainable().items()}
        model.zero_grad()
        (model(x) - 1.0).square().mean().backward()
        with torch.no_grad():
            for t in a.trainable().values():
                t.sub_(0.1 * t.grad)
        moved = {k for k, t in a.trainable().items() if not torch.equal(t, before[k])}
        assert moved == ({k for k in before if k.endswith("gate")} if step == 0 else set(before))


def test_an_open_gate_starts_like_its_delta_and_scales_it():
    case = Case(Gate(LoRA(r=3, alpha=6.0)))
    model = case.one()
    a = case.attach(model)
    lora = a.to_lora()
    assert lora.rank == 3
    p = {k.rpartition(".")[2]: t for k, t in a.state().items()}
    B, A = lora.factors["blocks.0"]
    assert gap(B @ A, p["gate"] * 2.0 * p["B"] @ p["A"]) < 1e-12
    start = Case(Gate(LoRA(r=3))).attach(case.one(), move=False).state()
    plain = Case(LoRA(r=3)).attach(case.one(), move=False).state()
    assert all(torch.equal(t, start[k]) for k, t in plain.items())


@pytest.mark.parametrize("key", [k for k, m in INNER.items() if m.sites == "weight" and not k.startswith("ia3")])
def test_every_structure_can_start_behind_a_closed_gate(key):
    """Whatever starts at zero is drawn; what is no change for another reason (two equal reflections, copied rows, columns or
    singular vectors, a product that is I, what was taken out put back) has nothing that could be drawn, and is refused."""
    method = Gate(INNER[key], g0=0.0)
    if why := refusal(method):
        case = Case(INNER[key], torch.float64)
        ((_, L, W),) = case.layers(case.attach(case.one(), move=False), case.x())
        if not isinstance(L, deltaw.ops.Affine):
            assert "depends on the whole input" in why
            return
        trained = case.attach(case.one(), move=False).trainable()
        assert "both start at 0" in why and key.split("-")[0] in UNDONE and all(bool(t.any()) for t in trained.values())
        assert gap(L.op.dense(), W.dense()) < 1e-10, "the delta is 0 up to rounding"
        return
    for law in ("starts_as_declared", "every_step_moves_what_is_trained"):
        result = testing.run_law(method, law, torch.float64)
        assert result.outcome != "failed", f"{law}: {result.detail}"


def test_gates_and_initialisations():
    """pissa divides by the scale of W + s B A: an open gate is part of s; behind a closed one there is nothing to move."""
    model = nn.Sequential(nn.Linear(16, 16))
    x = torch.randn(2, 16)
    y = model(x)
    deltaw.attach(model, deltaw.Plan(Gate(LoRA(r=4), g0=0.5), targets=["0"], init="pissa"))
    torch.testing.assert_close(model(x), y)
    with pytest.raises(SpecError, match="s = 0"):
        deltaw.attach(nn.Sequential(nn.Linear(16, 16)), deltaw.Plan(Gate(LoRA(r=4), g0=0.0), targets=["0"], init="pissa"))


def test_a_weighted_adapter_still_drops():
    """Another weight than 1 puts a number in front of the dropout; many tokens must not turn it into its mean."""
    case = Case(Drop(LoRA(r=3), p=0.5))
    model, x = case.one().train(), case.x(200, 16)
    case.attach(model)
    with deltaw.activate(model, ["default"], [0.5]):
        torch.manual_seed(0)
        y = model(x)
        torch.manual_seed(1)
        assert gap(model(x).detach(), y.detach()) > 1e-3
