"""Low-rank matrices as values, the SVD that follows its matrix, weighted fits: each against a dense computation in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import deltaw
from deltaw.errors import ShapeError, SpecError
from deltaw.lowrank import IncrementalSVD, LowRankMatrix, core_svd, keep
from deltaw.methods.compress import weighted_als, weighted_svd
from deltaw.ops import Dense, chain

F64 = torch.float64


def rand(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def low(m=9, n=7, r=3, seed=0):
    return LowRankMatrix(rand(m, r, seed=seed), rand(r, n, seed=seed + 100))


def close(a, b, tol=1e-10):
    assert a.shape == b.shape
    assert float((a - b).abs().max()) < tol


# ---- the value


@pytest.mark.parametrize("m,n,r", [(9, 7, 3), (3, 12, 5), (12, 3, 5), (4, 4, 4)])
def test_factors_by_the_small_core_are_those_of_the_dense_matrix(m, n, r):
    M = low(m, n, r)
    U, S, Vt = M.svd()
    assert len(S) == min(m, n, r)
    close(S, torch.linalg.svdvals(M.dense())[: len(S)])
    close((U * S) @ Vt, M.dense())
    close(U.mT @ U, torch.eye(len(S), dtype=F64))
    assert bool((U.gather(0, U.abs().argmax(0, keepdim=True)) > 0).all())


def test_sums_and_multiples_are_exact():
    M, N = low(seed=1), low(r=2, seed=2)
    close((M + N).dense(), M.dense() + N.dense())
    close((M - N).dense(), M.dense() - N.dense())
    close((-2.5 * M).dense(), -2.5 * M.dense())
    close(M.T.dense(), M.dense().mT)
    assert (M + N).rank == 5 and (M - N).error == 0.0
    close(M(rand(4, 7)), rand(4, 7) @ M.dense().mT)
    close(M.op()(rand(4, 7)), rand(4, 7) @ M.dense().mT)
    close(M.inner(N), (M.dense() * N.dense()).sum())
    close(M.norm(), torch.linalg.matrix_norm(M.dense()))


def test_the_norm_keeps_its_digits_where_terms_cancel():
    M = low()
    tiny = LowRankMatrix(M.B, M.A + 1e-9)
    assert float((tiny - M).norm()) == pytest.approx(
        float(torch.linalg.matrix_norm(M.B @ torch.full((3, 7), 1e-9, dtype=F64))), rel=1e-5
    )


def test_the_sum_of_many_adapters_is_the_svd_of_the_dense_sum():
    parts = [low(20, 15, 2, seed=s) for s in range(4)]
    total = sum(parts[1:], parts[0])
    S = torch.linalg.svdvals(sum(p.dense() for p in parts))
    close(total.svd()[1], S[:8])
    cut = total.recompress(rank=3)
    assert cut.rank == 3 and cut.error == pytest.approx(float(S[3:].norm()))
    assert float(torch.linalg.matrix_norm(cut.dense() - total.dense())) == pytest.approx(cut.error)


def test_cuts_by_count_tolerance_and_energy():
    S = torch.tensor([4.0, 2.0, 1.0, 0.0])
    assert keep(S) == 4 and keep(S, 2) == 2 and keep(S, tol=0.0) == 3
    assert keep(S, tol=1.01 / math.sqrt(21)) == 2 and keep(S, tol=0.99 / math.sqrt(21)) == 3
    assert keep(S, energy=16 / 21) == 1 and keep(S, energy=16.1 / 21) == 2 and keep(S, 1, energy=1.0) == 1
    assert keep(torch.zeros(3), tol=0.1) == 0
    for bad in ({"tol": 1.0}, {"energy": 0.0}, {"rank": -1}):
        with pytest.raises(SpecError):
            keep(S, **bad)


def test_errors_of_repeated_cuts_add_up_to_a_bound():
    exact, value = (
        torch.zeros(12, 10, dtype=F64),
        LowRankMatrix(torch.zeros(12, 0, dtype=F64), torch.zeros(0, 10, dtype=F64)),
    )
    for s in range(6):
        term = low(12, 10, 2, seed=s)
        exact, value = exact + term.dense(), (value + term).recompress(rank=3)
        missed = float(torch.linalg.matrix_norm(exact - value.dense()))
        assert missed <= value.error + 1e-12
    assert missed > 0.1 * value.error  # the bound is no idle one


def test_the_same_direction_dropped_twice_needs_the_sum_of_norms():
    e = LowRankMatrix(torch.eye(4, dtype=F64)[:, 1:2], torch.eye(4, dtype=F64)[1:2])
    big = LowRankMatrix(10 * torch.eye(4, dtype=F64)[:, :1], torch.eye(4, dtype=F64)[:1])
    value = ((big + e).recompress(rank=1) + e).recompress(rank=1)
    missed = float(torch.linalg.matrix_norm((big + e + e).dense() - value.dense()))
    assert missed == pytest.approx(2.0) and value.error == pytest.approx(
        2.0
    )  # sqrt of the sum of squares would say 1.41


def test_balanced_factors_have_equal_grams_and_the_same_product():
    M = LowRankMatrix(1e3 * rand(9, 3), 1e-2 * rand(3, 7, seed=1))
    N = M.balanced()
    close(N.dense(), M.dense(), 1e-9)
    close(N.B.mT @ N.B, N.A @ N.A.mT, 1e-10)
    assert N.error < 1e-12


def test_half_precision_factors_are_decomposed_in_float32_and_stored_as_they_were():
    M = LowRankMatrix(rand(8, 3).bfloat16(), rand(3, 6, seed=1).bfloat16())
    U, _, _ = M.svd()
    assert U.dtype == torch.float32 and M.balanced().B.dtype == torch.bfloat16
    assert core_svd(M.B, M.A)[1].dtype == torch.float32


# ---- the tangent space


def dense_tangent(M, G):
    PB, PA = M.B @ torch.linalg.pinv(M.B), torch.linalg.pinv(M.A) @ M.A
    return PB @ G + G @ PA - PB @ G @ PA


def test_the_tangent_part_is_the_orthogonal_projection():
    M, G = low(), rand(9, 7, seed=5)
    T = M.tangent(G)
    close(T.dense(), dense_tangent(M, G))
    assert T.rank == 6
    close(M.tangent(T).dense(), T.dense())
    thin = low(r=2, seed=7)
    close(M.tangent(thin).dense(), dense_tangent(M, thin.dense()))
    close(M.tangent(M).dense(), M.dense())


@pytest.mark.parametrize("m,n,r", [(9, 7, 3), (7, 9, 3), (4, 9, 3)])
def test_a_retraction_is_the_best_cut_of_the_tangent_step(m, n, r):
    M, G = low(m, n, r), rand(m, n, seed=5)
    new = M.retract(G, -0.3)
    U, S, Vt = torch.linalg.svd(M.dense() - 0.3 * dense_tangent(M, G), full_matrices=False)
    close(new.dense(), (U[:, :r] * S[:r]) @ Vt[:r], 1e-9)
    close(new.B.mT @ new.B, new.A @ new.A.mT, 1e-9)
    close(M.retract(G, 0.0).dense(), M.dense())


def test_a_retraction_follows_the_step_to_second_order():
    M, G = low(), rand(9, 7, seed=5)
    off = [
        float(torch.linalg.matrix_norm(M.retract(G, h).dense() - M.dense() - h * dense_tangent(M, G)))
        for h in (1e-2, 1e-3)
    ]
    assert 80 < off[0] / off[1] < 125


def test_retracted_descent_finds_the_nearest_matrix_of_a_rank():
    target = rand(9, 3, seed=8) @ rand(3, 7, seed=9)
    M = low(seed=3)
    for _ in range(60):
        M = M.retract(target - M.dense(), 1.0)
    close(M.dense(), target, 1e-8)


def test_adapters_are_values_too():
    model = torch.nn.Sequential(torch.nn.Linear(7, 9)).double()
    adapted = deltaw.attach(model, deltaw.Plan(deltaw.methods.LoRA(r=2), targets=["0"]))
    with torch.no_grad():
        for p in adapted.trainable().values():
            p.copy_(rand(*p.shape, seed=4))
    B, A = adapted.to_lora().factors["0"]
    from deltaw.convert import site_delta

    M = LowRankMatrix.of(site_delta(adapted, adapted.assignments[0]))
    close(M.dense().detach(), (B @ A).detach())
    with pytest.raises(ShapeError, match="no exact factors"):
        LowRankMatrix.of(Dense(rand(9, 7)))
    assert LowRankMatrix.of(chain(rand(9, 2), rand(2, 7))).rank == 2


def test_shapes_are_named():
    with pytest.raises(ShapeError, match="factors"):
        LowRankMatrix(rand(4, 2), rand(3, 4))
    with pytest.raises(ShapeError, match="equal"):
        low() + low(m=8)
    with pytest.raises(ShapeError, match="direction"):
        low().tangent(rand(7, 9))


# ---- the SVD that follows its matrix


def follow(terms, m=14, n=11, **cut):
    W = IncrementalSVD.empty(m, n, F64)
    for C, D in terms:
        W = W.update(C, D, **cut)
    return W


def terms(count, k=2, m=14, n=11):
    return [(rand(m, k, seed=s), rand(n, k, seed=50 + s)) for s in range(count)]


def test_updates_without_a_cut_are_exact():
    W, dense = IncrementalSVD.of(low(14, 11, 3)), low(14, 11, 3).dense()
    for C, D in terms(3):
        W, dense = W.update(C, D), dense + C @ D.mT
        close((W.U * W.S) @ W.V.mT, dense)
        close(W.S, torch.linalg.svdvals(dense)[: W.rank])
    assert W.rank == 9 and W.error == 0.0 and W.drift() < 1e-12


def test_more_terms_than_the_matrix_has_rows_still_fit():
    W = follow(terms(9))
    assert W.rank == 11
    close((W.U * W.S) @ W.V.mT, sum(C @ D.mT for C, D in terms(9)), 1e-9)


def test_a_term_inside_the_space_adds_no_rank():
    W = IncrementalSVD.of(low(14, 11, 3))
    C, D = W.U @ rand(3, 2), W.V @ rand(3, 2, seed=1)
    new = W.update(C, D)
    assert new.rank == 3
    close((new.U * new.S) @ new.V.mT, (W.U * W.S) @ W.V.mT + C @ D.mT)


def test_rows_and_columns_are_appended():
    M = low(6, 5, 2)
    W, E, F = IncrementalSVD.of(M), rand(3, 5, seed=3), rand(9, 2, seed=4)
    taller = W.append_rows(E)
    close(taller.matrix().dense(), torch.cat([M.dense(), E]))
    wider = taller.append_columns(F)
    close(wider.matrix().dense(), torch.cat([torch.cat([M.dense(), E]), F], 1))
    assert wider.shape == (9, 7)
    assert taller.append_columns(F, rank=2).rank == 2


def test_a_downdate_takes_a_term_out_again():
    W, (C, D) = IncrementalSVD.of(low(14, 11, 3)), terms(1)[0]
    back = W.update(C, D).update(-C, D, tol=1e-10)
    assert back.rank == 3
    close(back.matrix().dense(), W.matrix().dense())


def test_what_a_cut_drops_is_counted():
    W, (C, D) = IncrementalSVD.of(low(14, 11, 3)), terms(1)[0]
    S = torch.linalg.svdvals(W.matrix().dense() + C @ D.mT)
    assert W.update(C, D, rank=2).error == pytest.approx(float(S[2:].norm()))
    exact, W = torch.zeros(14, 11, dtype=F64), follow(terms(6), rank=3)
    for C, D in terms(6):
        exact += C @ D.mT
    assert float(torch.linalg.matrix_norm(exact - W.matrix().dense())) <= W.error


def test_the_order_of_terms_matters_only_by_what_is_cut():
    made = [follow(order) for order in itertools.permutations(terms(3))]
    for W in made[1:]:
        close(W.S, made[0].S)
        close(W.matrix().dense(), made[0].matrix().dense())


@pytest.mark.parametrize("dtype,limit", [(torch.float64, 1e-6), (torch.float32, 2e-5)])
def test_bases_stay_orthonormal_over_a_thousand_updates(dtype, limit):
    g = torch.Generator().manual_seed(0)
    W = IncrementalSVD.empty(12, 10, dtype)
    for _ in range(1000):
        C, D = (torch.randn(size, 1, generator=g, dtype=dtype) for size in (12, 10))
        W = W.update(C, D, rank=4)
    assert W.drift() < limit


def test_bases_that_lean_are_repaired():
    W = IncrementalSVD.of(low(14, 11, 3))
    bent = IncrementalSVD(W.U + 1e-5 * rand(14, 3, seed=9), W.S, W.V)
    assert bent.drift() > 1e-6 and bent.repaired().drift() < 1e-14
    close((bent.repaired().U * bent.repaired().S) @ bent.repaired().V.mT, (bent.U * bent.S) @ bent.V.mT)
    C, D = terms(1)[0]
    assert bent.update(C, D).drift() < 1e-14


def test_a_stream_of_rows_gives_the_principal_directions():
    X = rand(60, 4, seed=1) @ rand(4, 8, seed=2) + 1e-3 * rand(60, 8, seed=3)
    W = IncrementalSVD.empty(0, 8, F64)
    for k in range(0, 60, 10):
        W = W.append_rows(X[k : k + 10], rank=4)
    _, S, Vt = torch.linalg.svd(X, full_matrices=False)
    close(W.S, S[:4], 1e-3)
    assert float((Vt[:4] @ W.V).square().sum()) == pytest.approx(4.0, abs=1e-5)


def test_a_term_of_another_shape_is_refused():
    with pytest.raises(ShapeError, match="a term"):
        IncrementalSVD.empty(4, 3).update(rand(4, 2), rand(4, 2))


# ---- weighted fits


def test_equal_weights_give_the_truncated_svd():
    M = rand(9, 7)
    fit = weighted_als(M, torch.ones(9, 7), 3)
    U, S, Vt = torch.linalg.svd(M, full_matrices=False)
    close(fit.dense(), (U[:, :3] * S[:3]) @ Vt[:3])
    assert fit.losses[-1] == pytest.approx(float(S[3:].square().sum()))
    close(fit.B.mT @ fit.B, fit.A @ fit.A.mT)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("steps", [None, 2])
def test_the_loss_never_rises(ridge, steps):
    M, w = rand(12, 9), rand(12, 9, seed=1).square() + 0.01
    losses = weighted_als(M, w, 3, sweeps=40, ridge=ridge, steps=steps, tol=0.0).losses
    assert len(losses) > 5 and all(b <= a * (1 + 1e-12) for a, b in zip(losses, losses[1:]))
    assert losses[-1] < 0.9 * losses[0]


def test_it_stands_where_the_gradient_vanishes():
    M, w, ridge = rand(8, 6), rand(8, 6, seed=1).square() + 0.1, 0.2
    fit = weighted_als(M, w, 2, sweeps=4000, ridge=ridge, tol=0.0)
    B, A = fit.B.clone().requires_grad_(), fit.A.clone().requires_grad_()
    ((w * (M - B @ A).square()).sum() + ridge * (B @ A).square().sum()).backward()
    assert float(B.grad.abs().max()) < 1e-6 and float(A.grad.abs().max()) < 1e-6


@pytest.mark.parametrize("steps", [None, 5])
def test_a_matrix_is_completed_from_some_of_its_entries(steps):
    m, n, r = 40, 30, 2
    M = rand(m, r) @ rand(r, n, seed=1)
    seen = torch.randperm(m * n, generator=torch.Generator().manual_seed(3))[: 5 * r * (m + n)]
    w = torch.zeros(m * n, dtype=F64).index_fill_(0, seen, 1.0).reshape(m, n)
    hidden = torch.where(w > 0, M, torch.nan)
    close(weighted_als(hidden, w, r, sweeps=500, tol=1e-24, steps=steps).dense(), M, 1e-6)


def test_inexact_solves_have_the_limit_of_exact_ones():
    M, w = rand(12, 9), rand(12, 9, seed=1).square() + 0.2
    exact, inexact = (weighted_als(M, w, 2, sweeps=3000, tol=0.0, steps=s) for s in (None, 5))
    close(exact.dense(), inexact.dense(), 1e-6)


def test_weights_of_rank_one_need_no_sweeps():
    M, u, v = rand(9, 7), rand(9, seed=1).square() + 0.1, rand(7, seed=2).square() + 0.1
    fit = weighted_svd(M, u, v, 2)
    swept = weighted_als(M, u[:, None] * v, 2, sweeps=5000, tol=0.0)
    close(fit.dense(), swept.dense(), 1e-6)
    assert fit.losses[0] == pytest.approx(float((u[:, None] * v * (M - fit.dense()).square()).sum()))


def test_a_row_without_enough_weights_needs_a_ridge():
    M, w = rand(6, 5), torch.ones(6, 5)
    w[2, 1:] = 0
    with pytest.raises(SpecError, match="ridge"):
        weighted_als(M, w, 2)
    assert math.isfinite(weighted_als(M, w, 2, ridge=1e-3).losses[-1])


def test_wrong_weights_are_named():
    with pytest.raises(ShapeError, match="weights of its shape"):
        weighted_als(rand(4, 3), torch.ones(3, 4), 1)
    with pytest.raises(SpecError, match="at least 0"):
        weighted_als(rand(4, 3), -torch.ones(4, 3), 1)
    with pytest.raises(SpecError, match="positive"):
        weighted_svd(rand(4, 3), torch.zeros(4), torch.ones(3), 1)
    with pytest.raises(ShapeError, match="per row"):
        weighted_svd(rand(4, 3), torch.ones(3), torch.ones(3), 1)
