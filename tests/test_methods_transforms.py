"""What the laws do not say about transforms, shards and routed low-rank methods."""

from __future__ import annotations

import math

import pytest
import torch

import deltaw
from deltaw import Plan
from deltaw.errors import ShapeError, SpecError
from deltaw.methods import (
    C3A,
    DEFT,
    QWHA,
    BDLoRA,
    BoneBat,
    DeLoRA,
    DiaBlo,
    FourierFT,
    KaSA,
    Lily,
    LoCA,
    MiCA,
    MiSS,
    PaRa,
    QALoRA,
)
from deltaw.methods.transforms import Between, Coefficients, Cosine, Haar, Spectrum, Walsh, paley
from deltaw.spec import from_config
from deltaw.testing.laws import Case

F64 = torch.float64
LIKE = torch.zeros(1, dtype=F64)


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def near(a, b, tol=1e-11):
    assert (a - b).abs().max() <= tol * max(1.0, float(b.detach().abs().max()))


# ---- fast transforms against their matrices


def cosine(n):
    k = torch.arange(n, dtype=F64)
    C = torch.cos(math.pi * k[:, None] * (2 * k + 1) / (2 * n)) * math.sqrt(2 / n)
    C[0] /= math.sqrt(2)
    return C


def haar(n):
    h = (n + 1) // 2
    M = torch.zeros(2 * h, 2 * h, dtype=F64)
    for i in range(h):
        M[2 * i, i] = M[2 * i + 1, i] = M[2 * i, h + i] = math.sqrt(0.5)
        M[2 * i + 1, h + i] = -math.sqrt(0.5)
    return M[:n]


def walsh(n):
    H = torch.tensor(paley(n), dtype=F64)
    while len(H) < n:
        H = torch.kron(H, torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=F64))
    return H


TRANSFORMS = [(Cosine, cosine, n) for n in (1, 2, 3, 8, 17, 24)] + [(Haar, haar, n) for n in (1, 2, 7, 16)]
TRANSFORMS += [(Walsh, walsh, n) for n in (1, 2, 16, 12, 24, 40, 28, 36, 60)]


@pytest.mark.parametrize("kind, matrix, n", TRANSFORMS, ids=lambda v: getattr(v, "__name__", str(v)))
def test_fast_transforms_are_their_matrices(kind, matrix, n):
    op, M = kind(n, LIKE), matrix(n)
    assert op.shape == tuple(M.shape)
    x, y = randn(3, 2, M.shape[1]), randn(5, n, seed=1)
    near(op(x), x @ M.mT)
    near(op.rmv(y), y @ M)
    near(op.dense(), M)
    near(op.cols(torch.tensor([0, M.shape[1] - 1])), M[:, [0, -1]].mT)
    scale = n if kind is Walsh else 1
    if n % 2 == 0 or kind is Cosine:
        near(M @ M.mT, scale * torch.eye(n, dtype=F64))


@pytest.mark.parametrize("n", [12, 20, 28, 36, 44, 60, 68, 84, 108, 124, 140, 148])
def test_paley_matrices_are_hadamard(n):
    H = torch.tensor(paley(n))
    assert H.shape == (n, n) and set(H.unique().tolist()) == {-1, 1}
    assert torch.equal(H @ H.mT, n * torch.eye(n, dtype=H.dtype))


def test_sizes_without_a_transform_are_refused():
    for n in (3, 6, 13, 52, 92):
        with pytest.raises(ShapeError, match=str(n)):
            paley(n)
    with pytest.raises(ShapeError, match="Walsh-Hadamard"):
        QWHA(r=1).params(8, 13)


@pytest.mark.parametrize("tokens", [1, 400])
def test_spectrum_is_the_inverse_transform(tokens):
    """For few tokens (gathered) and for many (built), forward, transposed, and gradients."""
    v, i, j = randn(9).requires_grad_(), torch.arange(9) % 5, (torch.arange(9) * 3) % 7
    S = torch.zeros(5, 7, dtype=F64).index_put((i, j), v, accumulate=True)
    for op, M in (
        (Spectrum(v, i, j, (5, 7)), torch.fft.ifft2(S).real),
        (Between(Cosine(5, v).T, Coefficients(v, i, j, (5, 7)), Cosine(7, v)), cosine(5).mT @ S @ cosine(7)),
        (Between(None, Coefficients(v, i, j, (5, 7)), Cosine(7, v)), S @ cosine(7)),
    ):
        x, y = randn(tokens, 7), randn(tokens, 5, seed=1)
        near(op(x), x @ M.mT)
        near(op.rmv(y), y @ M)
        near(op.dense(), M)
        near(op.T.dense(), M.mT)
        near(*(torch.autograd.grad((f * y).sum(), v, retain_graph=True)[0] for f in (op(x), x @ M.mT)))


# ---- starts and positions


@pytest.mark.parametrize("method", [FourierFT(k=40, init="zeros"), C3A(b=4, init="zeros")])
def test_the_start_of_zeros_is_the_base(method):
    case = Case(method)
    model, x = case.tiny(), case.x()
    before = model(x)
    case.attach(model, move=False)
    assert torch.equal(model(x), before)


def test_positions_are_distinct_and_the_same_for_equal_shapes():
    case = Case(FourierFT(k=100))
    state = case.attach(case.tiny(), move=False, seed=9).state()
    a, b, c = (state[f"blocks.{k}.I"] for k in ("0.sq", "1.sq", "0.up"))
    assert torch.equal(a, b) and len(a.unique()) == len(c.unique()) == 100 and not torch.equal(a, c)
    other = Case(FourierFT(k=100, seed=1))
    assert not torch.equal(other.attach(other.tiny()).state()["blocks.0.sq.I"], a)


# ---- LoCA's places


def test_places_learn_by_central_differences():
    """l.grad = a_t / 2 (L(i + 1, j) - L(i - 1, j)) of a loss that is linear in the update, at the borders with themselves."""
    case = Case(LoCA(k=30))
    model, x = case.one(), case.x(7, 16)
    adapted = case.attach(model)
    (a, place), G = (adapted.state()[f"blocks.0.{k}"] for k in "al"), case.x(7, 24, name="G")
    (model(x) * G).sum().backward()
    K = cosine(24) @ (G.mT @ x) @ cosine(16).mT
    i, j = (place.detach().clamp(0, 0.999) * torch.tensor([[23.0], [15.0]], dtype=F64)).round().long()
    near(a.grad, K[i, j])
    inside = (place >= 0) & (place <= 0.999)
    want = a.detach() / 2 * torch.stack((
        K[(i + 1).clamp(max=23), j] - K[(i - 1).clamp(min=0), j], K[i, (j + 1).clamp(max=15)] - K[i, (j - 1).clamp(min=0)],
    ))  # fmt: skip
    near(place.grad, want * inside)
    assert bool((~inside).any()) and bool(inside.any())


def test_places_and_coefficients_take_turns_by_optimiser_steps(tmp_path):
    case = Case(LoCA(k=30))
    model, x = case.tiny(), case.x()
    rule = {"key": "loca", "cycle": 5, "first": 2, "until": 8, "lr_places": 0.01}
    adapted = case.attach(model, update=rule)
    assert from_config(adapted.plan.to_dict()["update"], deltaw.methods.update.UPDATES) == adapted.plan.update
    optimizer = adapted.optimizer(lr=0.01)
    for step in range(12):
        if step == 4:  # a reloaded optimiser goes on where it was
            saved, optimizer = optimizer.state_dict(), adapted.optimizer(lr=0.01)
            optimizer.load_state_dict(saved)
        before = {k: t.detach().clone() for k, t in adapted.trainable().items()}
        for half in x.split(2):  # accumulation does not count
            model(half).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        moved = {k[-1] for k, t in adapted.trainable().items() if not torch.equal(t, before[k])}
        assert moved == ({"a"} if step >= 8 or step % 5 < 2 else {"l"}), step
    with pytest.raises(SpecError, match="closure"):
        optimizer.step(lambda: 0.0)
    with pytest.raises(SpecError, match="cycle"):
        case.attach(case.tiny(), update={**rule, "first": 5}).optimizer(lr=0.1)


def test_a_large_difference_is_cut_before_the_step():
    """With rate r Adam's first step is r whatever the size, so the cut shows in the second moment."""
    case = Case(LoCA(k=30))
    model = case.tiny()
    adapted = case.attach(model, update={"key": "loca", "cycle": 2, "first": 1})
    optimizer = adapted.optimizer(lr=0.0)
    for _ in range(2):
        optimizer.zero_grad()
        (1e6 * model(case.x()).square().sum()).backward()
        optimizer.step()
    places = [p for k, p in adapted.trainable().items() if k.endswith(".l")]
    assert max(float(optimizer.state[p]["exp_avg_sq"].max()) for p in places) <= 1e-3 * (1 + 1e-9)


# ---- QWHA


def test_a_coefficient_changes_one_row():
    case = Case(QWHA(r=1))
    model = case.one()
    adapted = case.attach(model, move=False)
    c, places = adapted.state()["blocks.0.c"], adapted.state()["blocks.0.I"]
    with torch.no_grad():
        c[0] = 1.0
    ((_, L, W),) = case.affine(adapted, case.x())
    change = L.op.dense() - W.dense()
    assert change.abs().sum(1).nonzero().flatten().tolist() == [int(places[0]) // 16]


def test_all_coefficients_write_any_matrix():
    """With K = mn and c = E H sqrt(m) / s the update is E."""
    E, m, n = randn(16, 16), 16, 16
    method = QWHA(r=8, s=0.5)
    case = Case(method)
    model = case.one(16, 16)
    adapted = case.attach(model, move=False)
    state = adapted.state()
    with torch.no_grad():
        state["blocks.0.c"].copy_((E @ walsh(n)).flatten()[state["blocks.0.I"]] * math.sqrt(m) / method.s)
    ((_, L, W),) = case.affine(adapted, case.x(3, 16))
    near(L.op.dense() - W.dense(), E)


# ---- Lily


def test_lily_shares_down_by_neighbours_and_the_bank_by_type():
    """Four layers, stride 2: two A and one bank per type; the count is r n L / 2 + num_B r m + num_B r L."""
    from deltaw.testing.tiny import Block, Tiny, settle

    model = Tiny()
    model.blocks = torch.nn.ModuleList([Block() for _ in range(4)])
    adapted = deltaw.attach(settle(model, F64), Plan(Lily(r=3, num_B=2, stride_A=2), targets=["sq", "up"]))
    state = adapted.state()
    assert sum(k.endswith(".A") for k in state) == 4 and sum(k.endswith(".B") for k in state) == 2
    assert sum(t.numel() for t in adapted.trainable().values()) == sum(
        3 * 16 * 4 // 2 + 2 * 3 * m + 2 * 3 * 4 for m in (16, 24)
    )


def test_lily_does_not_look_at_other_rows():
    case = Case(Lily(r=4))
    model, x = case.tiny(), case.x(4, 5, 16)
    case.attach(model)
    near(torch.cat([model(row[None]) for row in x]), model(x))
    assert (model(x.flatten(0, 1)[None]).reshape(4, 5, 16) - model(x)).abs().max() > 1e-4  # but at its own tokens


# ---- blocks and shards


def change_of(method, m, n):
    """(the adapter's tensors at one m x n layer, its change of the weight)."""
    case = Case(method)
    adapted = case.attach(case.one(m, n))
    ((_, L, W),) = case.affine(adapted, case.x(3, n))
    return {k.rpartition(".")[2]: t for k, t in adapted.state().items()}, (L.op.dense() - W.dense()).detach(), W.dense().detach()


def test_diablo_changes_the_diagonal_blocks_only():
    """10 x 7 with N = 3: blocks of 4 outputs and 3 inputs, cut at the end; and the rank can be full."""
    p, change, _ = change_of(DiaBlo(N=3), 10, 7)
    assert p["D"].shape == (3, 3, 4)
    inside = torch.zeros(10, 7, dtype=torch.bool)
    for k in range(3):
        inside[4 * k : 4 * k + 4, 3 * k : 3 * k + 3] = True
    assert not change[~inside].any() and change[inside].all()
    assert torch.linalg.matrix_rank(change_of(DiaBlo(N=4), 16, 16)[1]) == 16


def test_bat_can_be_undone_block_by_block():
    """W = (W' - D) (I + D)^-1."""
    p, change, W = change_of(BoneBat(r=4), 12, 8)
    for i, D in enumerate(p["D"].detach()):
        for j in range(2):
            at = slice(4 * i, 4 * i + 4), slice(4 * j, 4 * j + 4)
            near((W[at] + change[at] - D) @ torch.linalg.inv(torch.eye(4, dtype=F64) + D), W[at], 1e-10)


def test_shards_are_the_fast_axis():
    p, change, _ = change_of(MiSS(r=4), 6, 10)
    for j in range(10):
        near(change[:, j], p["D"].detach()[j % 4])
    assert torch.linalg.matrix_rank(change) <= 4


# ---- DeLoRA, DEFT and PaRa


def test_delora_keeps_within_its_strength():
    case = Case(DeLoRA(r=4, strength=3.0))
    model, x = case.one(), case.x()
    adapted = case.attach(model, move=False)
    optimizer = adapted.optimizer(lr=0.3)
    for _ in range(5):
        optimizer.zero_grad()
        (model(x) - 10.0).square().mean().backward()
        optimizer.step()
        ((_, L, W),) = case.affine(adapted, x)
        scaled = (L.op.dense() - W.dense()) / W.dense().square().sum(0).sqrt()
        bound = float(adapted.state()["blocks.0.l"].detach().abs())
        assert 0 < float(scaled.detach().square().sum().sqrt()) <= bound * (1 + 1e-9)


def test_the_twin_takes_the_start_off_again():
    case = Case(DeLoRA(r=4, twin=True))
    model, x = case.tiny(), case.x()
    before = model(x)
    adapted = case.attach(model, move=False)
    near(model(x), before, 1e-10)
    state = adapted.state()
    assert state["blocks.0.sq.B"].abs().min() > 0 and torch.equal(state["blocks.0.sq.B"], state["blocks.0.sq.B0"])
    assert not state["blocks.0.sq.B0"].requires_grad
    before = {k: t.detach().clone() for k, t in state.items()}
    model(x).square().sum().backward()
    adapted.optimizer(lr=0.1).step()
    assert {k.rpartition(".")[2] for k, t in adapted.state().items() if not torch.equal(t, before[k])} == {"A", "B", "l"}


def test_para_removes_r_dimensions_of_outputs():
    p, change, W = change_of(PaRa(r=3), 16, 16)
    assert torch.linalg.matrix_rank(change) == 3 and torch.linalg.matrix_rank(W + change) == 13
    near(p["P"].detach().mT @ (W + change), torch.zeros(3, 16, dtype=F64))


def test_deft_writes_anything_into_its_subspace():
    """With "qr", Qᵀ W' = s R whatever W was, and the rest of W is left alone."""
    method = DEFT(r=3, alpha=6.0, decomposition="qr")
    p, change, W = change_of(method, 16, 16)
    Q = torch.linalg.qr(p["P"].detach()).Q
    near(Q.mT @ (W + change), 2.0 * p["R"].detach())
    rest = torch.eye(16, dtype=F64) - Q @ Q.mT
    near(rest @ (W + change), rest @ W)
    assert torch.linalg.matrix_rank(change) == 3


# ---- variants of LoRA


def test_qalora_moves_zero_points_only():
    """W = scale (q - z) in groups of 4 inputs: W' has the same scales and integers and other zero points."""
    _, change, W = change_of(QALoRA(r=3, group_size=4), 12, 8)
    groups, moved = W.reshape(12, 2, 4), (W + change).reshape(12, 2, 4)
    near(change.reshape(12, 2, 4).std(-1), torch.zeros(12, 2, dtype=F64))
    low, step = groups.amin(-1, keepdim=True), (groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True)) / 15
    near((moved - moved.amin(-1, keepdim=True)) / step, (groups - low) / step, 1e-10)


def test_kasa_starts_from_the_base_without_its_noise():
    case = Case(KaSA(r=4))
    model, x = case.one(), case.x()
    case.attach(model, move=False)
    U, S, V = torch.linalg.svd(model.blocks[0].weight.detach(), full_matrices=False)
    near(model(x), x @ ((U[:, :12] * S[:12]) @ V[:12]).mT + model.blocks[0].bias, 1e-10)


def test_mica_trains_a_only_and_counts_it():
    p, change, _ = change_of(MiCA(r=4), 24, 16)
    assert p["A"].requires_grad and not p["B"].requires_grad
    near(p["B"].mT @ p["B"], torch.eye(4, dtype=F64))
    near(change, 2.0 * p["B"] @ p["A"].detach())


def test_bd_lora_runs_split_without_talking():
    """Side "B" on a layer split along its outputs: each part needs only its own block of B."""
    method = BDLoRA(r=4, nblocks=2)
    p, change, _ = change_of(method, 12, 8)
    for k in range(2):
        own = 2.0 * p["B"][k].detach() @ p["A"].detach()[2 * k : 2 * k + 2]
        near(change[6 * k : 6 * k + 6], own)
