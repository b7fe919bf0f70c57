"""The algebra against dense matrices, in float64, on random expressions."""

import itertools

import pytest
import torch

from deltaw.errors import NotLinear, ShapeError
from deltaw.ops import (
    Affine,
    Base,
    BlockDiag,
    Dense,
    Diag,
    Eye,
    Hadamard,
    Kron,
    Map,
    Zero,
    add,
    chain,
    cost,
    delta,
    factors,
    rank_bound,
    row_norm,
    scale,
    watch_dense,
)  # fmt: skip
from deltaw.ops import random as rng

M, N, R = 12, 8, 3


def rand(*shape, seed=0):
    return rng.normal(shape, seed + sum(shape))


class W(Base):
    def __init__(self, m=M, n=N, bias=False):
        self.w, self.shape = rand(m, n, seed=77), (m, n)
        self.bias = rand(m) if bias else None
        self.calls = 0

    @property
    def like(self):
        return self.w

    def weight(self):
        return self.w

    def __call__(self, x):
        self.calls += 1
        return x @ self.w.mT.to(x.dtype)

    def rmv(self, y):
        return y @ self.w.to(y.dtype)

    def affine(self, x, bias):
        y = self(x)
        return y if bias is None else y + bias


def low():
    return chain(rand(M, R), rand(R, N))


CASES = {
    "dense": lambda: Dense(rand(M, N)),
    "diag": lambda: Diag(rand(N)),
    "eye": lambda: Eye(N, rand(N), 0.5),
    "zero": lambda: Zero(M, N, rand(1)),
    "blocks": lambda: BlockDiag(rand(4, 3, 2)),
    "base": lambda: W(),
    "chain": lambda: chain(rand(M), rand(M, R), rand(R), rand(R, N)),
    "sum": lambda: add(W(), low(), Dense(rand(M, N, seed=3))),
    "transpose": lambda: low().T,
    "hadamard": lambda: Hadamard(low(), chain(rand(M, 2), rand(2, N))),
    "hadamard with W": lambda: Hadamard(W(), low()),
    "kron": lambda: Kron(rand(3, 4), rand(4, 2)),
    "kron of a chain": lambda: Kron(rand(3, 4), chain(rand(4, 1), rand(1, 2))),
    "right product": lambda: chain(W(), Eye(N, rand(N)) + chain(rand(N, 2), rand(2, N))),
    "left product": lambda: chain(Eye(M, rand(M)) + chain(rand(M, 2), rand(2, M)), W()),
    "scaled base": lambda: 0.3 * W(),
    "scaled": lambda: torch.tensor(0.7, dtype=torch.float64) * low(),
}


@pytest.mark.parametrize("name", CASES)
def test_every_node_is_its_dense_matrix(name):
    op = CASES[name]()
    d = op.dense()
    assert tuple(d.shape) == op.shape
    m, n = op.shape
    x, y = rand(2, 5, n), rand(2, 5, m)
    assert torch.allclose(op(x), x @ d.mT, atol=1e-12)
    assert torch.allclose(op.rmv(y), y @ d, atol=1e-12)
    assert torch.allclose(op.T.dense(), d.mT) and torch.allclose(op.T.T.dense(), d)
    ids = torch.tensor([[0, n - 1], [2, 2]])
    assert torch.allclose(op.cols(ids), d.mT[ids], atol=1e-12)
    assert torch.allclose(scale(-2.0, op).dense(), -2 * d, atol=1e-12)
    assert torch.linalg.matrix_rank(d) <= rank_bound(op)
    assert torch.allclose(row_norm(op), d.norm(dim=1), atol=1e-10)
    assert cost(op, 3) >= 0
    if (pair := factors(op)) is not None:
        assert torch.allclose(pair[0] @ pair[1], d, atol=1e-12)
        assert pair[0].shape[1] >= torch.linalg.matrix_rank(d)


@pytest.mark.parametrize("name", CASES)
def test_outputs_have_the_dtype_of_the_input(name):
    op = CASES[name]()
    for dtype in (torch.float32, torch.bfloat16):
        assert op(torch.ones(2, op.shape[1], dtype=dtype)).dtype == dtype
        assert op.rmv(torch.ones(2, op.shape[0], dtype=dtype)).dtype == dtype


def test_exact_factors_never_touch_the_base_and_have_the_expected_rank():
    for make, rank in ((low, R), (CASES["hadamard"], 2 * R), (lambda: chain(W(), rand(N, 2), rand(2, N)), 2)):
        with watch_dense() as seen:
            pair = factors(make())
        assert pair is not None and pair[0].shape[1] == rank and not seen
    assert factors(CASES["hadamard with W"]()) is None and factors(W()) is None


def test_delta_is_simplified_not_computed():
    base = W()
    X = chain(rand(N, 2), rand(2, N))
    Y = chain(rand(M, 2), rand(2, M))
    cases = [
        (base + low(), R), (chain(base, Eye(N, base.w) + X), 2), (chain(Eye(M, base.w) + Y, base), 2), (base, 0),
    ]  # fmt: skip
    for op, rank in cases:
        with watch_dense() as seen:
            d = delta(op, base)
            pair = factors(d)
        assert not seen and pair[0].shape[1] == rank
        assert torch.allclose(d.dense(), op.dense() - base.w, atol=1e-12)
    rows = chain(rand(M), base)
    assert torch.allclose(delta(rows, base).dense(), rows.dense() - base.w, atol=1e-12)
    shifted = base + low()  # a base that an initialisation has moved
    assert torch.allclose(delta(shifted + low(), shifted).dense(), low().dense())


def test_the_base_is_called_once_and_its_kernel_adds_the_bias():
    base = W(bias=True)
    x = rand(4, N)
    y = Affine(base + low(), base.bias)(x)
    assert base.calls == 1
    assert torch.allclose(y, x @ (base.w + low().dense()).mT + base.bias)


def test_row_norms_by_expansion_equal_dense_ones_and_need_no_temporary():
    base = W(64, 48)
    for size in (1e-3, 1.0, 30.0):
        op = base + size * chain(rand(64, 3), rand(3, 48))
        assert torch.allclose(row_norm(op), op.dense().norm(dim=1), rtol=1e-10)


def test_row_norms_survive_cancellation():
    """Rows of W + BA that are 1e-4 of W: in float32 the expansion has no digit of them."""
    base = W(64, 48)
    B, A = rand(64, 3), rand(3, 48)
    base.w = (1e-4 * rand(64, 48, seed=5) - B @ A).float()
    op = base + chain(B.float(), A.float())
    exact = (base.w.double() + B.float().double() @ A.float().double()).norm(dim=1)
    assert torch.allclose(row_norm(op).double(), exact, rtol=1e-2)


def test_shapes_are_checked():
    with pytest.raises(ShapeError, match="cannot follow"):
        chain(rand(4, 3), rand(2, 4))
    with pytest.raises(ShapeError, match="differ in shape"):
        add(Dense(rand(2, 3)), Dense(rand(3, 2)))
    with pytest.raises(ShapeError, match="bias"):
        Affine(Dense(rand(2, 3)), rand(3))


def test_a_map_that_is_not_linear_has_no_matrix():
    class Gate(Map):
        pass

    assert not any(hasattr(Gate(), word) for word in ("dense", "T", "rmv", "shape"))
    with pytest.raises(NotLinear):
        Gate().cols(torch.tensor([0]))


def test_gradients_through_every_pair_of_combinators():
    leaf = [rand(6, 2).requires_grad_(), rand(2, 6).requires_grad_(), rand(6).requires_grad_()]
    low6 = lambda: chain(leaf[0], leaf[1])  # noqa: E731
    makers = [lambda a, b: chain(a, b), lambda a, b: add(a, b), lambda a, b: Hadamard(a, b)]
    x = rand(3, 6)
    for f, g in itertools.product(makers, makers):
        op = f(g(low6(), Diag(leaf[2])), low6())
        want = torch.autograd.grad((x @ op.dense().mT).square().sum(), leaf)
        got = torch.autograd.grad(op(x).square().sum(), leaf)
        assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(want, got))


def test_counter_based_numbers():
    a = rng.uniform((1000,), 7)
    assert torch.equal(a[:10], rng.uniform((10,), 7)) and not torch.equal(a, rng.uniform((1000,), 8))
    assert 0 <= a.min() and a.max() < 1 and abs(a.mean() - 0.5) < 0.03
    z = rng.normal((20000,), 3)
    assert abs(z.mean()) < 0.03 and abs(z.std() - 1) < 0.02 and z.isfinite().all()
    picked = rng.choose(50, 200, 1)
    assert len(set(picked.tolist())) == 50 and (picked.diff() > 0).all() and picked.max() < 200
    # the bits are part of the file format: a change of the generator must be a new VERSION
    assert rng.VERSION == 1
    assert rng.bits(2, 0).tolist() == BITS


BITS = [5197578548964807871, -3642288131749336026]
