"""What the laws do not say of rotations, products with the weight, norms and biases."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import deltaw
from deltaw import Plan
from deltaw.errors import ShapeError, SpecError, TargetError
from deltaw.methods import BEFT, BOFT, HUT, OFT, AdaLoRA, BitFit, Full, HiRA, LNTuning, LoRMA, RoAd
from deltaw.methods.cayley import cayley, neumann, skew
from deltaw.methods.penalties import orthonormality
from deltaw.methods.rolled import Rolled
from deltaw.sites.find import is_norm
from deltaw.testing.laws import Case
from deltaw.testing.laws.base import gap
from deltaw.testing.tiny import coded, values


def adapted(method, m=24, n=16, size=0.1, bias=True):
    """(dense W', W, layer) of a pushed adapter on one layer."""
    case = Case(method)
    model = case.one(m, n, bias)
    a = case.attach(model, move=False)
    with torch.no_grad():
        for name, p in a.trainable().items():
            p.add_(values(*p.shape, name=name, std=size))
    (_, L, W), = case.affine(a, case.x(2, n))
    return L.op.dense().detach(), W.dense().detach(), L


# ---- rotations


@pytest.mark.parametrize("method", [OFT(block_size=4, terms=0), OFT(block_size=8, terms=0, share=True)])
def test_cayley_rotations_keep_the_gram_matrix(method):
    new, old, _ = adapted(method, size=1.0)
    assert gap(new @ new.mT, old @ old.mT) < 1e-12 and gap(new, old) > 0.1


@pytest.mark.parametrize("terms", [4, 5, 7])
def test_the_series_misses_orthogonality_by_its_first_missing_power(terms):
    """|R Rᵀ - I| falls with |Q|^(terms-1), or one power faster (the odd ones cancel); at |Q| ~ 0.05 it is below 1e-3."""
    direction = skew(values(3, 6, name="q"), 4)
    direction = direction / torch.linalg.matrix_norm(direction, 2).max()
    off = []
    for size in (0.1, 0.05):
        R = torch.eye(4, dtype=torch.float64) + neumann(size * direction, terms)
        off.append(float((R @ R.mT - torch.eye(4, dtype=torch.float64)).abs().max()))
    assert off[1] < 1e-3 and math.log2(off[0] / off[1]) > terms - 1.2


def test_series_and_solve_rotate_in_opposite_senses():
    Q = 0.01 * skew(values(3, 6, name="q"), 4)
    assert gap(neumann(Q, 7), cayley(Q).mT) < 1e-6 and gap(neumann(Q, 7), cayley(Q)) > 0.1


def test_coft_stays_in_its_ball_however_large_q_becomes():
    for scale in (0.1, 10.0):
        new, old, _ = adapted(OFT(block_size=4, terms=0, eps=0.2), size=scale)
        R = torch.linalg.lstsq(old, new).solution  # W' = W R, W of full column rank
        Q = torch.linalg.solve(torch.eye(16) + R, torch.eye(16) - R)
        norms = torch.stack([torch.linalg.matrix_norm(Q[k : k + 4, k : k + 4]) for k in range(0, 16, 4)])
        assert norms.max() <= 0.2 / math.sqrt(4) * (1 + 1e-6)
    assert norms.min() > 0.2 / math.sqrt(4) * (1 - 1e-6)  # at 10 every block is on the sphere


def test_coft_and_projected_gradient_descent_take_the_same_first_step():
    """The gradient is that at the projection: what PEFT's optimiser sees after it has written the projection back."""
    case = Case(OFT(block_size=4, eps=0.2))
    x = case.x()
    grads = []
    for projected in (False, True):
        model = case.one()
        a = case.attach(model, move=False)
        (q,) = a.trainable().values()
        with torch.no_grad():
            q.copy_(values(*q.shape, name="q"))
            if projected:
                norm = q.square().sum(1, keepdim=True).mul(2).sqrt()
                q.mul_((0.2 / math.sqrt(4) / norm).clamp_max(1.0))
        model(x).square().sum().backward()
        grads.append(q.grad)
    assert gap(*grads) < 1e-9


@pytest.mark.parametrize("factors, dense", [(1, 4), (2, 8), (3, 16)])
def test_butterflies_reach_further_with_every_factor(factors, dense):
    """Every input of R mixes b 2^(f-1) of them: all 16 with log2(16 / 4) + 1 = 3 factors. R is orthogonal, s scales rows."""
    new, old, L = adapted(BOFT(block_size=4, factors=factors), size=0.5)
    R = torch.linalg.lstsq(old, new / L.op.parts[0].v.detach()[:, None]).solution
    assert gap(R @ R.mT, torch.eye(16)) < 1e-9
    assert ((R.abs() > 1e-9).sum(1) == dense).all()


def test_only_the_skew_part_of_boft_has_a_gradient():
    case = Case(BOFT())
    model = case.one()
    a = case.attach(model)
    model(case.x()).square().sum().backward()
    D = a.trainable()["blocks.0.D"].grad
    assert gap(D, -D.mT) < 1e-12


@pytest.mark.parametrize("method, n, words", [
    (OFT(block_size=32), 48, "block_size = 32 must divide n = 48"), (OFT(block_size=1), 16, "block_size >= 2"),
    (OFT(terms=3), 32, "at least 4"), (OFT(eps=0.0), 32, "eps"), (BOFT(factors=4), 16, "must divide n = 16"),
    (BOFT(block_size=3, factors=2), 12, "even size"), (BOFT(block_size=0), 16, "block_size"),
])  # fmt: skip
def test_sizes_that_do_not_fit(method, n, words):
    with pytest.raises((ShapeError, SpecError), match=words):
        method.params(8, n)


# ---- products with the weight


def test_rolled_is_row_by_row_and_both_routes_agree():
    B, A = values(12, 3, name="B"), values(3, 12, name="A")
    op = Rolled(B, A)
    want = torch.stack([torch.roll(row, i) for i, row in enumerate(B @ A)])
    assert torch.equal(op.dense(), want) and torch.linalg.matrix_rank(want) == 12  # of rank 3 before
    for tokens in (1, 400):
        x = values(tokens, 12, name="x")
        assert gap(op(x), x @ want.mT) < 1e-12 and gap(op.rmv(x), x @ want) < 1e-12
    wide = Rolled(values(512, 8, name="B"), values(8, 512, name="A"))
    x = values(3, 512, name="x")
    assert wide._few(x) and not wide._few(x.repeat(400, 1))
    assert gap(wide(x), x @ wide.dense().mT) < 1e-12 and gap(wide.rmv(x), x @ wide.dense()) < 1e-12


@pytest.mark.parametrize("side, d", [("pre", 24), ("post", 16)])
def test_lorma_inflates_the_rank(side, d):
    new, old, _ = adapted(LoRMA(r=2, inflation="plus", side=side))
    assert torch.linalg.matrix_rank(new - old) == 2
    new, old, _ = adapted(LoRMA(r=2, inflation="pi", side=side))
    assert torch.linalg.matrix_rank(new - old) == 16


def test_lorma_plus_is_a_lora_and_pi_is_none():
    case = Case(LoRMA(r=2))
    assert case.attach(case.one()).to_lora().rank == 2
    case = Case(LoRMA(r=2, inflation="pi"))
    with pytest.raises(deltaw.errors.NotMergeable, match="no exact low-rank factors"):
        case.attach(case.one()).to_lora()


def test_hut_is_hira_in_one_product():
    """At s = 1 the weight of HiRA; zeros of W stay; a forward has one product with W' and none with W."""
    case = Case(HUT(r=3, alpha=3.0))
    model, other = case.one(), case.one()
    for one in (model, other):
        one.blocks[0].weight.data[:, 3] = 0.0
    a, b = case.attach(model), deltaw.attach(other, HiRA(r=3))
    with torch.no_grad():
        for ours, theirs in (("M_A", "B"), ("M_B", "A")):
            b.state()[f"blocks.0.{theirs}"].copy_(a.state()[f"blocks.0.{ours}"])
    x = case.x()
    assert gap(model(x), other(x)) < 1e-12
    assert not a.merge(probe=x).model().blocks[0].weight[:, 3].any()
    from deltaw.bench.count import operators

    calls = operators(lambda: model(x))
    assert sum(calls.get(k, 0) for k in ("mm", "addmm", "bmm", "linear")) <= 2  # the gate, and W' x


# ---- norms and biases


class Rms(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight


class LlamaLikeRMSNorm(Rms):
    pass


def net():
    torch.manual_seed(0)
    return nn.ModuleDict({"a": LlamaLikeRMSNorm(8), "b": nn.Linear(8, 8), "c": nn.LayerNorm(8), "d": nn.BatchNorm1d(8),
                          "e": nn.Linear(8, 8, bias=False)})  # fmt: skip


def test_every_norm_is_found_and_nothing_else():
    model = net()
    assert [n for n, m in model.named_modules() if is_norm(m)] == ["a", "c"]
    found = deltaw.attach(model, LNTuning())
    assert sorted(found.state()) == ["a.weight", "c.bias", "c.weight"]
    assert is_norm(model["a"]), "what is attached to a norm does not make it another module"
    with pytest.raises(TargetError, match="norms"):
        deltaw.attach(net(), Plan(LNTuning(), targets=["d"]))


def test_ln_tuning_of_a_named_layer_is_full_tuning_of_it():
    """As PEFT's, which copies whatever it is pointed at."""
    ours, full, x = net(), net(), torch.randn(3, 8)
    full.load_state_dict(ours.state_dict())
    for model, method in ((ours, LNTuning()), (full, Full())):
        adapted = deltaw.attach(model, Plan(method, targets=["b"]))
        assert sorted(adapted.state()) == ["b.bias", "b.weight"]
        with torch.no_grad():
            for t in adapted.trainable().values():
                t.mul_(1.5)
    torch.testing.assert_close(ours["b"](x), full["b"](x), rtol=0, atol=0)
    assert not torch.equal(ours["b"](x), net()["b"](x))


def test_two_tuned_norms_add_their_moves():
    model = net()
    x = torch.randn(3, 8)
    base = model["c"](x)
    for k, name in enumerate("xy"):
        with torch.no_grad():
            for t in deltaw.attach(model, LNTuning(), name).trainable().values():
                t.add_(k + 0.5)
    with deltaw.activate(model, ["x", "y"]):
        both = model["c"](x)
    torch.testing.assert_close(both, F.layer_norm(x, (8,), torch.full((8,), 3.0), torch.full((8,), 2.0)))
    with deltaw.disabled(model):
        assert torch.equal(model["c"](x), base)


def test_bitfit_trains_the_biases_there_are():
    seen = deltaw.preview(net(), Plan(BitFit()))
    assert seen.trainable == 8 and [r["trainable"] for r in seen.rows] == [8, 0]
    with pytest.raises(SpecError, match="never has one"):
        deltaw.attach(nn.Sequential(nn.Embedding(4, 4)), Plan(BitFit(), targets=["0"]))
    with pytest.raises(SpecError, match="change of a weight"):
        deltaw.attach(net(), Plan(BitFit(LNTuning())))
    with pytest.raises(SpecError, match="'bias' of its own"):
        deltaw.attach(net(), Plan(BitFit(BitFit())))


def test_bitfit_and_beft_learn_the_same_bias():
    """Without weight decay a trained copy and a trained difference are the same point, step after step."""
    ends = []
    for method in (BitFit(), BEFT()):
        case = Case(method)
        model, x = case.one(), case.x()
        optimizer = torch.optim.Adam(case.attach(model, move=False).trainable().values(), lr=0.05)
        for _ in range(5):
            optimizer.zero_grad()
            (model(x) - 1.0).square().mean().backward()
            optimizer.step()
        ends.append(model(x).detach())
    assert gap(*ends) < 1e-12


def test_a_bias_without_a_place_is_refused_not_lost():
    case = Case(BEFT())
    layers = [nn.Linear(16, 24, bias=False), nn.Embedding(16, 24), nn.Conv1d(16, 24, 1, bias=False)]
    for layer in layers:
        model = nn.Sequential(layer)
        a = deltaw.attach(model, Plan(BEFT(), targets=["0"]))
        with pytest.raises(deltaw.errors.NotMergeable, match="none to write it to"):
            a.merge(probe=torch.zeros(1, 16, 3) if isinstance(layer, nn.Conv1d) else None)
    assert case.attach(case.one()).merge(probe=case.x()).certificate.max_error < 1e-10


def test_a_bias_is_no_detour_over_an_opaque_base():
    """x -> W (R x) + b hands the base's kernel the rotated input, and adds nothing of its own: in bfloat16 the bits at the
    start are the base's."""
    case = Case(OFT(block_size=4), torch.bfloat16)
    model = coded(case.one())
    y = model(case.x())
    case.attach(model, move=False)
    assert torch.equal(model(case.x()), y)


# ---- RoAd, AdaLoRA


def test_road_1_without_scale_is_a_rotation():
    case = Case(RoAd(group_size=8))
    model = case.one()
    a = case.attach(model, move=False)
    with torch.no_grad():
        theta = a.state()["blocks.0.theta"]
        theta.copy_(values(*theta.shape, name="theta"))
    ((_, L, W),) = case.affine(a, case.x())
    new, old = L.op.dense(), W.dense()
    assert gap(new.mT @ new, old.mT @ old) < 1e-12 and gap(L.bias.norm(), model.blocks[0].bias.norm()) < 1e-12


def test_adaloras_penalty_is_pefts():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)

    class Out:
        def __init__(self, loss):
            self.loss = loss

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 6), nn.Linear(6, 5)

        def forward(self, x):
            return Out(self.b(self.a(x)).sum())

    x, model = torch.randn(2, 8), Two()
    ours = deltaw.attach(model, AdaLoRA(r=3))
    config = peft.AdaLoraConfig(init_r=3, total_step=5, target_modules=["a", "b"], orth_reg_weight=0.25)
    theirs = peft.get_peft_model(Two(), config)
    with torch.no_grad():
        for site in "ab":
            layer = getattr(theirs.base_model.model, site)
            for word, name in (("B", "P"), ("A", "Q")):
                getattr(layer, f"lora_{word}")["default"].copy_(ours.state()[f"{site}.{name}"])
    plain = theirs.base_model.model(x).loss
    penalty = orthonormality(ours.trainable())
    torch.testing.assert_close(theirs.base_model(x).loss - plain, 0.25 * penalty)
    penalty.backward()
    assert all(bool(t.grad.any()) for k, t in ours.trainable().items() if k[-1] in "PQ")
    assert float(orthonormality({"s.P": torch.eye(6)[:, :3], "s.Q": torch.eye(3, 8)})) == 0.0
