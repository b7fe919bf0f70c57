"""What the specifications of the methods built on a decomposition of W, and of the fitting tools, say beyond the laws."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deltaw
from deltaw.errors import NotMergeable, ShapeError, SpecError
from deltaw.methods import (
    PELA,
    PMSS,
    SALT,
    CompLoRA,
    FLoRATucker,
    FoRA,
    LoKH,
    LoLDU,
    LoRA,
    QRLoRA,
    SVFit,
    TLoRA,
    VectorFit,
)
from deltaw.methods.compress import hadamard_als, kronecker_svd
from deltaw.methods.frames import energy_rank, pivoted_qr
from deltaw.methods.ring import Ring, from_identity, split
from deltaw.methods.rules.avf import AVF
from deltaw.plan import Plan

F64 = torch.float64


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def net(m: int = 12, n: int = 8, bias: bool = True) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(n, m, bias=bias)).double()
    with torch.no_grad():
        for k, p in enumerate(model.parameters()):
            p.copy_(rand(*p.shape, seed=k) / 3)
    return model


def attached(method: Any, model: nn.Module | None = None, size: float = 0.3) -> tuple[Any, Any, dict[str, Tensor], Tensor]:
    """(model, adapted, its tensors moved off the start, the change of the weight)."""
    model = net() if model is None else model
    adapted = deltaw.attach(model, Plan(method, targets=["0"]))
    with torch.no_grad():
        for k, t in enumerate(adapted.trainable().values()):
            t.add_(rand(*t.shape, seed=50 + k), alpha=size)
    change = adapted.merge().model()[0].weight.detach() - model[0].weight.detach()
    return model, adapted, {k.split(".", 1)[1]: v.detach() for k, v in adapted.state().items()}, change


# ---- frames of W


def test_pivoted_qr_is_one() -> None:
    for W in (rand(9, 6), 1e15 * rand(6, 9), rand(9, 2, seed=1) @ rand(2, 6, seed=2)):
        k = min(W.shape)
        Q, R, J = pivoted_qr(W, k)
        torch.testing.assert_close(Q @ R, W)
        T = R[:, J]
        assert T.tril(-1).abs().max() < 1e-12 * W.abs().max() and len(set(J.tolist())) == k
        d = T.diagonal().abs()
        small = 1e-12 * d[0]
        assert bool((d[1:] <= d[:-1] + small).all())
        # every diagonal entry is the largest of what is left in its rows: the definition of pivoting
        assert all(bool((torch.linalg.vector_norm(R[i:, J[i:]], dim=0) <= d[i] + small).all()) for i in range(k))
    assert Q[:, 2:].abs().max() == 0  # that weight has rank 2
    torch.testing.assert_close(pivoted_qr(rand(9, 6), 6)[0].mT @ pivoted_qr(rand(9, 6), 6)[0], torch.eye(6, dtype=F64))


def test_energy_rank() -> None:
    W = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.1]))
    assert [energy_rank(W, tau) for tau in (0.5, 0.64, 0.65, 0.92, 0.93, 1.0)] == [1, 1, 2, 2, 3, 4]


@pytest.mark.parametrize("method", [SVFit(r=3), QRLoRA(r=3), LoLDU(r=3, alpha=3.0), VectorFit()])
def test_one_number_a_direction(method: Any) -> None:
    """The rank of the change is the number of directions that moved."""
    model, adapted, p, _ = attached(method, net(bias=False), size=0.0)
    (vector,) = adapted.trainable().values()
    with torch.no_grad():
        vector[:2] = torch.tensor([0.7, -0.4])
    change = adapted.merge().model()[0].weight.detach() - model[0].weight.detach()
    assert torch.linalg.matrix_rank(change) == 2 and vector.numel() == min(getattr(method, "r", 8), 8)


def test_svfit_keeps_the_singular_vectors() -> None:
    model, _, p, change = attached(SVFit(r=3))
    W = model[0].weight.detach()
    core = p["U"].mT @ (W + change) @ p["Vt"].mT
    torch.testing.assert_close(core, torch.diag(torch.linalg.svdvals(W)[:3] + p["dsigma"]))


def test_vectorfit_trains_the_biases_that_are_there() -> None:
    model, adapted, p, _ = attached(VectorFit())
    torch.testing.assert_close(adapted.merge().model()[0].bias, model[0].bias + p["db"])
    assert "0.db" not in deltaw.attach(net(bias=False), VectorFit()).state()


def test_loldu_factors_rebuild_the_weight() -> None:
    model = net()
    p = deltaw.attach(model, LoLDU(r=8)).state()
    L, U, W = p["0.L"].detach(), p["0.U"].detach(), model[0].weight.detach()
    torch.testing.assert_close(U.tril(), torch.eye(8, dtype=F64))
    D = torch.linalg.solve(U.mT, torch.linalg.lstsq(L, W).solution.mT).mT
    torch.testing.assert_close(L @ D @ U, W)
    torch.testing.assert_close(D, torch.diag(D.diagonal()))
    pivots = [int((L[:, k] == 1).nonzero()[0]) for k in range(8)]  # L is unit lower triangular once its rows are ordered
    assert len(set(pivots)) == 8 and L[pivots].triu(1).abs().max() == 0 and L.abs().max() == 1
    flat = nn.Sequential(nn.Linear(8, 12)).double()
    with torch.no_grad():
        flat[0].weight.copy_(rand(12, 1) @ rand(1, 8))  # rank 1: D has zeros
    assert all(bool(t.isfinite().all()) for t in deltaw.attach(flat, LoLDU(r=8)).state().values())


def test_pmss_is_a_skeleton() -> None:
    model, adapted, p, change = attached(PMSS(r=4))
    W = model[0].weight.detach()
    assert torch.equal(p["C"], W[:, p["J"]]) and torch.equal(p["R"], W[p["I"]])
    assert len(set(p["I"].tolist())) == len(set(p["J"].tolist())) == 4
    assert torch.linalg.matrix_rank(change) == 4 and adapted.to_lora().rank == 4
    again = deltaw.attach(net(), PMSS(r=4)).state()
    assert torch.equal(again["0.I"], p["I"]) and torch.equal(again["0.J"], p["J"])


def test_salt_keeps_the_two_frames_apart() -> None:
    model, adapted, p, change = attached(SALT(r=2))
    assert (p["U"].mT @ change @ p["Vt_rest"].mT).abs().max() < 1e-12
    assert (p["U_rest"].mT @ change @ p["Vt"].mT).abs().max() < 1e-12
    assert adapted.to_lora().rank == 4 + 2
    low = p["U_rest"].mT @ change @ p["Vt_rest"].mT
    torch.testing.assert_close(low, p["X"] @ p["Y"])
    assert (p["X"] @ p["Y"]).min() < 0  # what the released code deletes
    with torch.no_grad():
        adapted.trainable()["0.b"].fill_(-100.0)  # no singular value turns negative
    gone = adapted.merge().model()[0].weight.detach()
    assert (p["U"].mT @ gone @ p["Vt"].mT).abs().max() < 1e-12
    with pytest.raises(ShapeError, match="k = 8 of 8"):
        deltaw.attach(net(), SALT(ratio=1.0))


@pytest.mark.parametrize("side", ["both", "out", "in"])
def test_comp_lora_leaves_the_principal_triples_alone(side: Any) -> None:
    model, adapted, _, change = attached(CompLoRA(r=3, k=4, side=side))
    W = model[0].weight.detach()
    U, S, V = torch.linalg.svd(W, full_matrices=False)
    left, right = (U[:, :4].mT @ change).norm() / change.norm(), (change @ V[:4].mT).norm() / change.norm()
    assert (left < 1e-12) == (side != "in") and (right < 1e-12) == (side != "out")
    assert torch.linalg.matrix_rank(change) == 3 and adapted.to_lora().rank == 3
    if side == "both":
        torch.testing.assert_close((W + change) @ V[:4].mT, U[:, :4] * S[:4])
    with pytest.raises(ShapeError, match="no room for r = 3"):
        deltaw.attach(net(), CompLoRA(r=3, k=6))


def test_pela_shrinks_by_c_and_starts_at_the_best_rank() -> None:
    model = net(24, 16)
    W = model[0].weight.detach().clone()
    adapted = deltaw.attach(model, PELA(c=2.0))
    assert sum(t.numel() for t in adapted.trainable().values()) <= W.numel() / 2
    r = adapted.trainable()["0.R"].shape[1]
    assert r == 24 * 16 // (2 * 40)
    first = adapted.merge().model()[0].weight.detach()
    torch.testing.assert_close((first - W).square().sum(), torch.linalg.svdvals(W)[r:].square().sum())
    torch.testing.assert_close(model[0].weight, W)  # the teacher is there, and unchanged
    with pytest.raises(ShapeError, match="keeps no direction"):
        deltaw.attach(net(3, 2), PELA(c=2.0))


# ---- products of small factors


def test_tlora_transform_uses_its_bonds_and_the_papers_start_does_not() -> None:
    """Rank of T across its first factor after training: 1 is a Kronecker product, whatever R is."""
    x, aim = rand(64, 8), rand(64, 12, seed=9)
    found = {}
    for ring in ("spread", "paper"):
        model = net()
        adapted = deltaw.attach(model, TLoRA(R=3, R_res=1, D=2, ring=ring))
        optimizer = adapted.optimizer(lr=1e-2)
        for _ in range(20):
            optimizer.zero_grad()
            (model(x) - aim).square().mean().backward()
            optimizer.step()
        A = [adapted.trainable()[f"0.A{d}"].detach() for d in (1, 2)]
        T = Ring(A).dense()
        (a, b), eye = (t.shape[0] for t in A), torch.eye(8, dtype=F64)
        assert (T - eye).abs().max() > 1e-2
        s = torch.linalg.svdvals(T.reshape(a, b, a, b).transpose(1, 2).reshape(a * a, b * b))
        found[ring] = int((s > 1e-6 * s[0]).sum())
        torch.testing.assert_close(from_identity(A), (T - eye).square().sum())
    assert found == {"spread": 4, "paper": 1}  # a is 2, so at most 4


def test_tlora_start_is_the_identity_and_its_residual_is_a_lora() -> None:
    for D, ring in ((2, "spread"), (3, "spread"), (4, "paper")):
        adapted = deltaw.attach(net(12, 12), TLoRA(R=2, D=D, ring=ring))
        T = Ring([adapted.state()[f"0.A{d}"].detach() for d in range(1, D + 1)])
        torch.testing.assert_close(T.dense(), torch.eye(12, dtype=F64), rtol=0, atol=1e-14)
    model, adapted, p, change = attached(TLoRA(R=1, R_res=2, D=2), net(24, 24))
    T = Ring([p["A1"], p["A2"]]).dense()
    assert torch.linalg.matrix_rank(change - model[0].weight.detach() @ (T - torch.eye(24, dtype=F64))) == 4
    assert [split(k, 3) for k in (768, 30, 7, 1)] == [(8, 8, 12), (3, 2, 5), (1, 1, 7), (1, 1, 1)]
    assert all(math.prod(split(k, D)) == k for k in (768, 30, 97, 1280) for D in (1, 2, 3, 4))


CONVS = [
    (nn.Conv2d(6, 10, (3, 2), stride=2, padding=1), (2, 6, 9, 8)),
    (nn.Conv2d(6, 10, 1), (2, 6, 9, 8)),
    (nn.Conv2d(6, 10, 3, padding=1, dilation=2, padding_mode="reflect"), (6, 9, 8)),
    (nn.Conv2d(6, 10, 3, groups=2), (2, 6, 9, 8)),
    (nn.Conv3d(6, 10, 2), (2, 6, 4, 4, 4)),
    (nn.Conv1d(6, 10, 3), (2, 6, 9)),
]


@pytest.mark.parametrize("conv, shape", CONVS)
def test_flora_tucker_on_convolutions(conv: nn.Module, shape: tuple[int, ...]) -> None:
    model, adapted, p, change = attached(FLoRATucker(r_in=2, r_out=3, scale=2.0), nn.Sequential(conv).double())
    axes = len(conv.kernel_size)
    kernel, ranks = "hwz"[:axes], "cde"[:axes]
    sides = ",".join(f"{k}{r}" for k, r in zip(kernel, ranks))
    factors = [p["G"], p["U_in"], p["U_out"], *(p[f"U_{t}"] for t in range(axes))]
    torch.testing.assert_close(change, 2.0 * torch.einsum(f"ab{ranks},ia,ob,{sides}->oi{kernel}", *factors))
    x = rand(*shape)
    torch.testing.assert_close(model(x), adapted.merge().model()(x))
    assert sum(t.numel() for t in adapted.trainable().values()) == sum(t.numel() for t in factors)
    if conv.groups == 1:
        assert adapted.to_lora().factors["0"][0].shape[1] <= 3


def test_flora_tucker_is_three_small_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    model, adapted, _, _ = attached(FLoRATucker(r_in=2, r_out=3), nn.Sequential(nn.Conv2d(6, 10, 3)).double())
    kernels, plain = [], torch.nn.functional.conv2d

    def seen(x: Tensor, w: Tensor, *rest: Any) -> Tensor:
        kernels.append(tuple(w.shape))
        return plain(x, w, *rest)

    monkeypatch.setattr(torch.nn.functional, "conv2d", seen)
    model(rand(2, 6, 9, 8))
    assert (3, 2, 3, 3) in kernels and kernels.count((10, 6, 3, 3)) == 1  # the base's own, no dense change


def test_flora_tucker_first_step_moves_the_core_only() -> None:
    model = net()
    adapted = deltaw.attach(model, FLoRATucker(r_in=3, r_out=4))
    model(rand(5, 8)).square().sum().backward()
    assert [k for k, t in adapted.trainable().items() if t.grad.any()] == ["0.G"]


def test_lokh_is_the_khatri_rao_product() -> None:
    _, adapted, p, change = attached(LoKH(r=2, alpha=2.0))
    left, right = p["B1"] @ p["A1"], p["B2"] @ p["A2"]
    torch.testing.assert_close(change, (left[:, None] * right).flatten(0, 1))
    assert torch.linalg.matrix_rank(change) == 4 and adapted.to_lora().rank == 4


# ---- FoRA


def test_fora_looks_at_a_grid() -> None:
    model = net()
    adapted = deltaw.attach(model, FoRA(r=2))
    with torch.no_grad():
        for k, t in enumerate(adapted.trainable().values()):
            t.copy_(rand(*t.shape, seed=k) / 3)
    base = lambda x: nn.functional.linear(x, model[0].weight, model[0].bias)  # noqa: E731
    image = rand(2, 4, 6, 8)
    y = model(image)
    torch.testing.assert_close(model(image.flatten(1, 2)), y.flatten(1, 2))  # 24 tokens are 4 x 6 by themselves
    # linear in x
    z = rand(2, 4, 6, 8, seed=5)
    torch.testing.assert_close(model(2 * image - z) - base(2 * image - z), 2 * (y - base(image)) - (model(z) - base(z)))
    # another image of the batch does not matter, another token of the image does
    other = image.clone()
    other[1, 0, 0] += 1.0
    moved = (model(other) - y).detach().abs().amax(-1)
    assert moved[0].max() == 0 and bool((moved[1] > 1e-9).all())
    with pytest.raises(NotMergeable):
        adapted.merge()


def test_fora_places_tokens_as_it_is_told() -> None:
    outputs = {}
    x = rand(1, 13, 8)
    for prefix, width in ((1, 0), (1, 6), (1, 3), (0, 0)):
        model = net()
        adapted = deltaw.attach(model, FoRA(r=2, prefix=prefix, width=width))
        with torch.no_grad():
            for k, t in enumerate(adapted.trainable().values()):
                t.copy_(rand(*t.shape, seed=k) / 3)
        outputs[prefix, width] = model(x).detach()
        p = {k: t.detach() for k, t in adapted.state().items()}
        if prefix:  # the class token sees itself only: a plain low-rank change
            own = nn.functional.linear(x[:, :1], model[0].weight + p["0.W_d"] @ p["0.W_e"], model[0].bias)
            torch.testing.assert_close(outputs[prefix, width][:, :1], own)
        if width == 6:
            torch.testing.assert_close(outputs[prefix, width][:, 1:], model(x[:, 1:].unflatten(1, (2, 6))).flatten(1, 2))
    assert all(not torch.allclose(outputs[1, 0], outputs[k]) for k in ((1, 6), (0, 0)))
    model = net()
    deltaw.attach(model, FoRA(r=2, width=5))
    with pytest.raises(ShapeError, match="13 image tokens do not fill rows of 5"):
        model(x)


def test_fora_without_its_spectrum_is_a_convolution_that_shifts_with_the_image() -> None:
    model = net()
    adapted = deltaw.attach(model, FoRA(r=2))
    p = adapted.trainable()
    with torch.no_grad():
        for k, t in enumerate(p.values()):
            t.copy_(rand(*t.shape, seed=k) / 3)
        p["0.K_f"].zero_()
        p["0.K_f"][:, :, 1, 1] = torch.eye(4, dtype=F64)
    delta = lambda x: (model(x) - nn.functional.linear(x, model[0].weight, model[0].bias)).detach()  # noqa: E731
    x = torch.zeros(1, 12, 12, 8, dtype=F64)
    x[0, 5, 5] = rand(8)
    y, shifted = delta(x), delta(x.roll((1, 1), (1, 2)))
    torch.testing.assert_close(shifted[:, 1:, 1:], y[:, :-1, :-1])
    assert (y[0].abs().amax(-1) > 1e-12).sum() == 25  # as far as a 5 x 5 kernel reaches


# ---- AVF


def train(model: nn.Module, adapted: Any, steps: int) -> list[dict[str, Tensor]]:
    """The trained tensors before the first step and after every step; weight decay on, so that standing still is a freeze."""
    optimizer = adapted.optimizer(lr=1e-2, weight_decay=0.1)
    seen = [{k: t.detach().clone() for k, t in adapted.trainable().items()}]
    for k in range(steps):
        optimizer.zero_grad()
        (model(rand(16, 8, seed=k)) - rand(16, 12, seed=100 + k)).square().mean().backward()
        optimizer.step()
        seen.append({k: t.detach().clone() for k, t in adapted.trainable().items()})
    return seen


def test_avf_rests_the_strongest_and_releases_them() -> None:
    model = nn.Sequential(nn.Linear(8, 10), nn.Tanh(), nn.Linear(10, 12)).double()
    rule = AVF(t_i=3, t_f=2, k=1, n_f=2, beta=0.5)
    adapted = deltaw.attach(model, Plan(VectorFit(), rules=(rule,)))
    with torch.no_grad():
        for t in adapted.trainable().values():
            t.add_(0.1)
    seen = train(model, adapted, 10)
    strength, resting, strongest = dict.fromkeys(seen[0], 0.0), [], {}
    for step, (before, after) in enumerate(zip(seen, seen[1:]), 1):
        resting.append({k for k in after if torch.equal(before[k], after[k])})
        for k in after:
            strength[k] += 0.5 * (float((after[k] - seen[0][k]).abs().mean()) - strength[k])
        strongest[step] = {max(strength, key=lambda k: strength[k])}
    # decisions after steps 3 and 5, an end after step 7; a tensor at rest does not move by a bit
    assert resting == [set()] * 3 + [strongest[3]] * 2 + [strongest[5]] * 2 + [set()] * 3


def test_avf_is_a_plan_and_refuses_to_freeze_everything() -> None:
    plan = Plan(VectorFit(), rules=(AVF(k=3),))
    assert Plan.from_dict(plan.to_dict()) == plan
    model = net()
    adapted = deltaw.attach(model, Plan(VectorFit(), rules=(AVF(t_i=1, k=2),)))
    with pytest.raises(SpecError, match="k = 2 of 2"):
        train(model, adapted, 1)


# ---- fitting


def test_hadamard_als_never_rises_and_finds_what_is_there() -> None:
    M = (rand(20, 2) @ rand(2, 15, seed=1)) * (rand(20, 2, seed=2) @ rand(2, 15, seed=3))
    fit = hadamard_als(M, 2, 2)
    torch.testing.assert_close(fit.dense(), M, rtol=0, atol=1e-8)
    for target in (M, rand(20, 15, seed=4)):
        errors = hadamard_als(target, 2, 2, sweeps=40, restarts=2).errors
        assert all(b <= a + 1e-14 for a, b in zip(errors, errors[1:])) and errors[-1] < errors[0]
    norms = torch.stack([t.norm() for t in (fit.B1, fit.A1, fit.B2, fit.A2)])
    torch.testing.assert_close(norms, norms.mean().expand(4))
    # into the tensors of a LoHa: the same change
    model = net(20, 15)
    adapted = deltaw.attach(model, deltaw.methods.LoHa(r=2, alpha=2.0))
    with torch.no_grad():
        for k, t in adapted.trainable().items():
            t.copy_(getattr(fit, k.split(".")[1]))
    torch.testing.assert_close(adapted.merge().model()[0].weight - model[0].weight, M, rtol=0, atol=1e-8)


def test_hadamard_als_with_one_rank_of_one() -> None:
    """A product of rank 1 only scales rows and columns, so what is fitted is a matrix of rank 2 all the same."""
    M = rand(9, 2) @ rand(2, 7, seed=1)
    fit = hadamard_als(M, 2, 1)
    torch.testing.assert_close(fit.dense(), M, rtol=0, atol=1e-6)
    other = rand(9, 7, seed=2)
    tail = torch.linalg.svdvals(other)[2:].norm() / other.norm()  # no matrix of rank 2 comes closer
    assert tail - 1e-9 <= hadamard_als(other, 2, 1, sweeps=400).errors[-1] <= tail + 1e-3


def test_hadamard_als_leaves_out_what_is_masked() -> None:
    M = (rand(20, 2) @ rand(2, 15, seed=1)) * (rand(20, 2, seed=2) @ rand(2, 15, seed=3))
    mask = torch.rand(20, 15, generator=torch.Generator().manual_seed(0)) > 0.1
    holes = torch.where(mask, M, math.nan)
    fit = hadamard_als(holes, 2, 2, mask=mask, sweeps=1000)
    torch.testing.assert_close(fit.dense(), M, rtol=0, atol=1e-6)  # the missing entries too
    with pytest.raises(ShapeError, match="mask of its shape"):
        hadamard_als(M, 2, 2, mask=mask[:3])


def test_kronecker_svd_is_the_nearest() -> None:
    C, D = rand(4, 3), rand(5, 2, seed=1)
    M = torch.kron(C, D)
    ((c, d),) = kronecker_svd(M, 4, 3)
    torch.testing.assert_close(torch.kron(c, d), M)
    M = rand(20, 6, seed=2)
    blocks = torch.stack([M[5 * i : 5 * i + 5, 2 * j : 2 * j + 2].flatten() for i in range(4) for j in range(3)])
    tail = torch.linalg.svdvals(blocks).square()
    for terms in (1, 3):
        fit = sum(torch.kron(c, d) for c, d in kronecker_svd(M, 4, 3, terms))
        torch.testing.assert_close((M - fit).square().sum(), tail[terms:].sum())
    with pytest.raises(ShapeError, match="m1 = 3 must divide m = 20"):
        kronecker_svd(M, 3, 3)


def test_a_wrapped_decomposition_is_still_one() -> None:
    """DoRA around them, where they are linear in their base: nothing here asks for LoRA's tensors."""
    for inner in (SVFit(r=3), CompLoRA(r=2, k=3), LoKH(r=2), TLoRA(R_res=1, D=2), LoRA(r=2)):
        model, adapted, p, change = attached(deltaw.methods.DoRA(inner))
        weight = model[0].weight.detach() + change
        torch.testing.assert_close(torch.linalg.vector_norm(weight, dim=1), p["g"].abs())
