"""Update rules that move the two factors of W + s B A together: the laws of their frames, and HF PEFT's optimisers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import deltaw
from deltaw.errors import SpecError
from deltaw.methods import BitFit, DoRA, LoRA, LoRAFA, VeRA
from deltaw.methods.update import About
from deltaw.methods.update.algebra import SGD, Adam, Ema, Keep, Move, Sub, SubOptimizer, Unit
from deltaw.methods.update.algebra.lifted import AdamGram, MoveGrams
from deltaw.methods.update.algebra.pair import Factor, Pair, inverse, spectrum
from deltaw.methods.update.algebra.tangent import Tangent, sylvester
from deltaw.methods.update.allora import ALLoRA, Rows
from deltaw.methods.update.altlora_plus import AltLoRAPlus
from deltaw.methods.update.loft import LoFT
from deltaw.methods.update.lora_pro import LoRAPro
from deltaw.methods.update.riemannian_lora import RiemannianLoRA
from deltaw.plan import Plan
from deltaw.testing.closed import closed
from deltaw.testing.tiny import Tiny, settle, values

M, N, R, S = 7, 5, 3, 2.0
TINY = 1e-13  # a delta that does not show


def start(m=M, n=N, r=R, s=S):
    """(W0, B, A) with W0 + s B A far from what the loss wants."""
    return values(m, n, name="W0"), values(m, r, name="B0", std=0.5), values(r, n, name="A0", std=0.5)


def slope(W):
    """G = dL/dW of a smooth loss with its least value at an aim."""
    return torch.tanh(W - values(*W.shape, name="aim", dtype=W.dtype)) + 0.05 * W @ W.mT @ W / W.numel()


def walk(rule, W0, B, A, steps=8, lr=0.1, s=S):
    """W0 + s B A after every step of a rule, or of the torch optimiser that an update rule makes."""
    p = {"x.A": nn.Parameter(A.clone()), "x.B": nn.Parameter(B.clone())}
    if hasattr(rule, "optimizer"):
        opt = rule.optimizer(p, lr, about=About(scale=lambda site: s))
    else:
        opt = SubOptimizer(p, [Unit("x", rule, {"A": p["x.A"], "B": p["x.B"]})], lr)
    out = []
    for _ in range(steps):
        G = slope(W0 + s * p["x.B"].detach() @ p["x.A"].detach())
        p["x.A"].grad, p["x.B"].grad = s * p["x.B"].detach().mT @ G, s * G @ p["x.A"].detach().mT
        opt.step()
        out.append(W0 + s * p["x.B"].detach() @ p["x.A"].detach())
    return torch.stack(out), p["x.B"].detach(), p["x.A"].detach()


# ---- frames (law 1, 2, 5)


@pytest.mark.parametrize("s", [1.0, 3.0])
def test_factor_frames_project(s):
    """down after up is the identity and up after down the projector P_B, whatever s and the basis of B; kappa = 0 is neither."""
    _, B, A = start()
    frame, C, G = Factor(1.0, TINY, s), values(R, N, name="C"), values(M, N, name="G")
    f = frame.refresh(A, B, None)
    torch.testing.assert_close(frame.down(f, frame.pull(f, frame.up(f, C))), C)
    P = B @ torch.linalg.pinv(B)
    torch.testing.assert_close(frame.up(f, frame.down(f, frame.pull(f, G))), P @ G)
    torch.testing.assert_close(frame.down(f, s * B.mT @ G), torch.linalg.pinv(B) @ G / s)
    plain = Factor(0.0, TINY, s)
    f = plain.refresh(A, B, None)
    assert (plain.up(f, plain.down(f, plain.pull(f, G))) - P @ G).norm() > 0.1 * (P @ G).norm()


def test_moving_between_factor_frames():
    """Between equal frames nothing; to another one the projection of the ambient momentum, both for m and for every square."""
    _, B, A = start()
    frame, C, new = Factor(1.0, TINY, S), values(R, N, name="C"), B + values(M, R, name="dB", std=0.3)
    f, g = frame.refresh(A, B, None), frame.refresh(A, new, None)
    torch.testing.assert_close(frame.move(f, f, C), C)
    moved = frame.move(f, g, C)
    torch.testing.assert_close(frame.up(g, moved), new @ torch.linalg.pinv(new) @ frame.up(f, C))
    V = torch.einsum("aj,bj->jab", C, C)
    state = {"m": C.clone(), "V": V.clone()}
    MoveGrams()(AdamGram(), state, lambda c: frame.move(f, g, c), lambda c: c, None)
    torch.testing.assert_close(state["V"], torch.einsum("aj,bj->jab", moved, moved))
    with pytest.raises(SpecError, match="kappa = 1"):
        Pair(Factor(0.0), Ema(), Move())


def test_full_rank_is_plain_sgd():
    W0, B, A = start(6, 4, 4)
    W, _, _ = walk(Pair(Factor(1.0, TINY, S), SGD(), order="turns"), W0, B, A, steps=1)
    torch.testing.assert_close(W[0], (W := W0 + S * B @ A) - 0.1 * slope(W))


# ---- gauge (law 7)

Q = values(R, R, name="Q") + 2 * torch.eye(R, dtype=torch.float64)
ONE = Factor(1.0, TINY, S)
FREE = {
    "sgd joint": Pair(ONE, SGD(), order="joint"),
    "sgd sequential": Pair(ONE, SGD()),
    "sgd alternate": Pair(ONE, SGD(), order="alternate"),
    "altlora": Pair(ONE, Ema(0.9), Move()),
    "altlora turns": Pair(ONE, Ema(0.9), Move(), order="turns"),
    "loft": Pair(ONE, AdamGram(eps=1e-4), MoveGrams(), order="alternate"),
    "lora_pro zero": Tangent(Adam(), S, TINY, "zero"),
    "lora_pro symmetric": Tangent(Adam(), S, TINY, "symmetric"),
    "tangent sgd": Tangent(SGD(), S, TINY, "zero"),
}
BOUND = {
    "kappa 0": Pair(Factor(0.0, 0.0, S), SGD()),
    "kappa 1/2": Pair(Factor(0.5, TINY, S), SGD()),
    "riemannian": Pair(ONE, Adam(), order="joint"),
    "altlora_plus": AltLoRAPlus(delta=TINY),
}


@pytest.mark.parametrize("name", FREE)
def test_ambient_trajectory_does_not_know_the_basis(name):
    W0, B, A = start()
    one, _, _ = walk(FREE[name], W0, B, A)
    two, _, _ = walk(FREE[name], W0, B @ Q, torch.linalg.solve(Q, A))
    assert (one[-1] - one[0]).norm() > 0.1
    torch.testing.assert_close(two, one, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", BOUND)
def test_ambient_trajectory_knows_the_basis(name):
    W0, B, A = start()
    one, _, _ = walk(BOUND[name], W0, B, A)
    two, _, _ = walk(BOUND[name], W0, B @ Q, torch.linalg.solve(Q, A))
    assert (two - one).norm() > 1e-3 * (one - (W0 + S * B @ A)).norm()


STAY = {
    "momentum that stays": Pair(ONE, Ema(0.9), Keep()),
    "grams that stay": Pair(ONE, AdamGram(eps=1e-4), Move(), order="alternate"),
}


def rebased(rule, W0, B, A, change):
    """The ambient trajectory if the basis is exchanged after four of eight steps, under the optimiser's feet."""
    p = {"A": nn.Parameter(A.clone()), "B": nn.Parameter(B.clone())}
    opt = SubOptimizer(p, [Unit("x", rule, p)], 0.1)
    for step in range(8):
        if step == 4:
            p["B"].data, p["A"].data = p["B"].data @ change, torch.linalg.solve(change, p["A"].data)
        G = slope(W0 + S * p["B"].detach() @ p["A"].detach())
        p["A"].grad, p["B"].grad = S * p["B"].detach().mT @ G, S * G @ p["A"].detach().mT
        opt.step()
    return W0 + S * p["B"].detach() @ p["A"].detach()


@pytest.mark.parametrize("name", FREE | STAY)
def test_moments_follow_a_basis_that_changes_in_mid_run(name):
    """What `Move` is for: the run goes on as if nothing had happened; without it, or half of it, it does not."""
    W0, B, A = start()
    rule, same = (FREE | STAY)[name], torch.eye(R, dtype=torch.float64)
    one, two = rebased(rule, W0, B, A, same), rebased(rule, W0, B, A, Q)
    if name in FREE:
        torch.testing.assert_close(two, one, rtol=1e-7, atol=1e-8)
    else:
        assert (two - one).norm() > 1e-3 * (one - (W0 + S * B @ A)).norm()


# ---- LoRA-Pro (law 6)


def tangent(B, A, G):
    PB, PA = B @ torch.linalg.pinv(B), torch.linalg.pinv(A) @ A
    return PB @ G + G @ PA - PB @ G @ PA


@pytest.mark.parametrize("gauge", ["sylvester", "zero", "symmetric"])
def test_first_order_change_is_the_tangent_part_in_every_gauge(gauge):
    W0, B, A = start()
    G = slope(W0 + S * B @ A)
    _, B1, A1 = walk(Tangent(SGD(), S, TINY, gauge), W0, B, A, steps=1, lr=1.0)
    dA, dB, T = A - A1, B - B1, tangent(B, A, G)
    torch.testing.assert_close(S * (B @ dA + dB @ A), T)
    drop = (S * B.mT @ G * dA).sum() + (S * G @ A.mT * dB).sum()
    torch.testing.assert_close(drop, T.square().sum())


def test_sylvester_gauge_changes_the_factors_least():
    """The equation holds, and X + anything moves the factors further from dL/dA and dL/dB."""
    W0, B, A = start()
    G = slope(W0 + S * B @ A)
    a, b = S * B.mT @ tangent(B, A, G), S * tangent(B, A, G) @ A.mT
    X = sylvester(
        spectrum(B.mT @ B, 0.0), spectrum(A @ A.mT, 0.0), rhs := -torch.linalg.solve(B.mT @ B, a) @ A.mT / S**2
    )
    assert (B.mT @ B @ X + X @ A @ A.mT - rhs).norm() < 1e-10 * rhs.norm()
    size = {}
    for gauge in ("sylvester", "zero", "symmetric"):
        _, B1, A1 = walk(Tangent(SGD(), S, TINY, gauge), W0, B, A, steps=1, lr=1.0)
        size[gauge] = (A - A1 - a).square().sum() + (B - B1 - b).square().sum()
    for k in range(5):
        Z = 0.1 * values(R, R, name=f"Z{k}")
        _, B1, A1 = walk(Tangent(SGD(), S, TINY), W0, B, A, steps=1, lr=1.0)
        size[k] = (A - A1 + Z @ A - a).square().sum() + (B - B1 - B @ Z - b).square().sum()
    assert min(size, key=size.get) == "sylvester"


def test_the_zero_start_needs_no_branch():
    """B = 0: A stays, and W moves by -lr D P_A, D = sign-like Adam of G P_A; all is finite, in float32 too."""
    W0, B, A = start()
    for dtype in (torch.float64, torch.float32):
        W, B1, A1 = walk(LoRAPro(), W0.to(dtype), 0 * B.to(dtype), A.to(dtype), steps=3, lr=1e-3)
        assert W.isfinite().all() and (W[1:] - W[:-1]).norm() > 0
    PA = torch.linalg.pinv(A) @ A
    G = slope(W0) @ PA
    W, B1, A1 = walk(LoRAPro(), W0, 0 * B, A, steps=1)
    assert torch.equal(A1, A)
    torch.testing.assert_close(W[0], W0 - 0.1 * (G / (G.abs() + 1e-8)) @ PA, rtol=1e-6, atol=1e-7)


def test_inverse_is_the_pseudo_inverse():
    """Rounding errors of a Gram matrix of lower rank are no directions; a zero matrix and a fractional power are fine."""
    Y = (values(20, 2, name="Y2") @ values(2, 4, name="Y4")).float()
    G = Y.mT @ Y
    torch.testing.assert_close(inverse(*spectrum(G, 0.0)), torch.linalg.pinv(G, hermitian=True), rtol=1e-3, atol=1e-4)
    assert torch.equal(inverse(*spectrum(0 * G, 0.0)), 0 * G)
    torch.testing.assert_close(inverse(*spectrum(0 * G, 1e-2)), 100 * torch.eye(4))
    F = torch.eye(4) + G
    torch.testing.assert_close(
        inverse(*spectrum(F, 0.0), 0.5) @ inverse(*spectrum(F, 0.0), 0.5) @ F, torch.eye(4), rtol=1e-3, atol=1e-4
    )


# ---- LoFT


@pytest.mark.parametrize("s", [1.0, 2.0])
def test_loft_at_full_rank_is_adam_on_the_weight(s):
    """Square and of full rank, every step of either factor is Adam's step of W: twelve of them."""
    W0, B, A = start(4, 4, 4)
    A, B = A + torch.eye(4), B + torch.eye(4)
    W, _, _ = walk(LoFT(delta=1e-15), W0, B, A, steps=12, lr=0.02, s=s)
    p = nn.Parameter(W0 + s * B @ A)
    adam = torch.optim.Adam([p], lr=0.02, eps=1e-4)
    for k in range(12):
        p.grad = slope(p.detach())
        adam.step()
        torch.testing.assert_close(W[k], p.detach(), rtol=1e-6, atol=1e-7)
    # and where only A is square, B's first step is
    W0, B, A = start(6, 3, 3)
    W, _, _ = walk(LoFT(delta=1e-15), W0, B, A, steps=1, s=s)
    G = slope(W0 + s * B @ A)
    torch.testing.assert_close(W[0], W0 + s * B @ A - 0.1 * G / (G.abs() + 1e-4), rtol=1e-6, atol=1e-7)


def test_loft_in_pieces_is_loft():
    """No temporary has more numbers than it says; how many makes no difference."""
    W0, B, A = start()
    runs = []
    for largest in (2**22, 40, 1):
        rule = Pair(Factor(1.0, 1e-6, S), AdamGram(eps=1e-4, largest=largest), MoveGrams(), "alternate")
        runs.append(walk(rule, W0, B, A)[0])
    torch.testing.assert_close(runs[1], runs[0])
    torch.testing.assert_close(runs[2], runs[0])


@pytest.mark.parametrize("order", ["alternate", "turns"])
def test_one_factor_a_step_b_first(order):
    W0, B, A = start()
    before = (B, A)
    for steps in range(1, 5):
        _, B1, A1 = walk(Pair(ONE, SGD(), order=order), W0, B, A, steps=steps)
        assert torch.equal(A1, before[1]) is (steps % 2 == 1) and torch.equal(B1, before[0]) is (steps % 2 == 0)
        before = (B1, A1)


# ---- ALLoRA


def test_allora_gain():
    """eta at a row of zeros, falling as the row grows; with SGD it is what the step of a row is multiplied with."""
    B = torch.diag(torch.tensor([0.0, 0.1, 1.0, 100.0], dtype=torch.float64))
    c = Rows(2.0).refresh(B, B, None, None)["c"].flatten()
    assert c[0] == 2.0 and (c[1:] < c[:-1]).all()
    torch.testing.assert_close(c[3], torch.tensor(100.25).double().rsqrt())
    p, G = nn.Parameter(B.clone()), values(4, 4, name="G4")
    p.grad = G.clone()
    SubOptimizer({"x.B": p}, [Unit("x.B", Sub(Rows(2.0), SGD(), every=1), {"W": p})], 0.1).step()
    torch.testing.assert_close(p.detach(), B - 0.1 * c[:, None] * G)


# ---- which tensors


def test_pairs_are_found_by_name_and_the_rest_is_plain():
    model = settle(Tiny(), torch.float64)
    adapted = deltaw.attach(model, Plan(DoRA(BitFit(LoRA(r=2, alpha=6.0))), update="altlora"))
    opt = adapted.optimizer(1e-2)
    kinds = {u.name: (type(u.rule).__name__, sorted(u.p)) for u in opt.units}
    assert kinds["blocks.0.sq"] == ("Pair", ["A", "B"]) and kinds["blocks.0.sq.g"] == ("Plain", ["W"])
    assert kinds["blocks.0.sq.bias"] == ("Plain", ["W"])
    adapted.detach()
    adapted = deltaw.attach(model, Plan(LoRA(r=2, alpha=6.0), update="altlora"))
    assert {u.rule.frame.s for u in adapted.optimizer(1e-2).units} == {3.0}


def test_what_has_no_pairs_says_so():
    for method, match in ((LoRAFA(r=2), "not trained here: blocks.0.sq.A"), (VeRA(r=2), "found only")):
        adapted = deltaw.attach(settle(Tiny(), torch.float64), Plan(method, update="riemannian_lora"))
        with pytest.raises(SpecError, match=match):
            adapted.optimizer(1e-2)
    with pytest.raises(SpecError, match="rows of B"):
        ALLoRA().optimizer({"x.weight": nn.Parameter(torch.ones(2, 2))}, 1e-2)


def test_factors_at_an_embedding_are_plain():
    net = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 5))
    adapted = deltaw.attach(net, Plan(LoRA(r=2), targets=["0", "1"], update="loft"))
    kinds = {u.name: type(u.rule).__name__ for u in adapted.optimizer(1e-2).units}
    assert kinds == {"1": "Pair", "0.A": "Plain", "0.B": "Plain"}


# ---- HF PEFT


def beside_peft(method, update, theirs, steps=6, **config):
    """(name of ours -> tensor, the same tensors of PEFT's LoRA) after the same steps of both."""
    peft = pytest.importorskip("peft")
    model = settle(Tiny(), torch.float64)
    adapted = deltaw.attach(model, Plan(method, targets=["sq", "up"], update=update))
    other = peft.get_peft_model(
        settle(Tiny(), torch.float64),
        peft.LoraConfig(r=method.r, lora_alpha=int(method.alpha), target_modules=["sq", "up"], **config),
        autocast_adapter_dtype=False,
    ).double()
    layers = {n: m for n, m in other.base_model.model.named_modules() if hasattr(m, "lora_A")}
    pairs = {}
    for site, entry in adapted.entries().items():
        for word in "AB":
            t = getattr(layers[site], f"lora_{word}")["default"].weight
            with torch.no_grad():
                entry.get(word).copy_(values(*t.shape, name=f"{site}{word}", std=0.3))
                t.copy_(entry.get(word))
            pairs[f"{site}.{word}"] = (entry.get(word), t)
    for net, opt in ((model, adapted.optimizer(1e-2)), (other, theirs(other))):
        for step in range(steps):
            opt.zero_grad()
            (net(values(8, 16, name=f"x{step}")) - values(8, 16, name=f"y{step}")).square().mean().backward()
            opt.step()
    return pairs


@pytest.mark.parametrize("alpha", [3.0, 6.0])
def test_riemannian_is_that_of_peft(alpha):
    """s = 1 as it is; with s = 2 theirs lacks s⁻², which Adam hides if its epsilon has s²."""
    from peft.optimizers import create_riemannian_optimizer

    eps = 1e-8 * (alpha / 3) ** 2
    pairs = beside_peft(
        LoRA(r=3, alpha=alpha),
        RiemannianLoRA(),
        lambda m: create_riemannian_optimizer(m, torch.optim.AdamW, lr=1e-2, reg=1e-2, eps=eps, weight_decay=0.0),
    )
    for ours, theirs in pairs.values():
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_lora_fa_is_the_gradient_in_the_frame_of_a():
    """As a rule (A is not trained, so no update rule sees it); with AdamW behind it: test_peft_factored.py."""
    assert closed("rules", "lora_fa").check()
