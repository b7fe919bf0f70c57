"""Bilevel optimisation against a quadratic whose hypergradient is known, and the reward of a step that is taken back."""

from __future__ import annotations

import copy

import pytest
import torch

import deltaw
from deltaw.bilevel import BoRep, lookahead_reward
from deltaw.errors import SpecError, StateMismatch

F64 = torch.float64


def rand(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


class Quadratic:
    """g = ½ yᵀ H y - yᵀ C x, so y* = H⁻¹ C x; f = ½ |y - t|² + ½ c |x|². dF/dx = c x + Cᵀ H⁻¹ (y* - t)."""

    def __init__(self, c=0.3):
        M = rand(5, 5)
        self.H, self.C, self.t, self.c = M @ M.mT / 5 + torch.eye(5, dtype=F64), rand(5, 3, seed=1), rand(5, seed=2), c
        self.x, self.y = rand(3, seed=3).requires_grad_(), torch.zeros(5, dtype=F64, requires_grad=True)
        self.seen = []

    def f(self, call):
        self.seen.append(("f", call))
        return 0.5 * (self.y - self.t).square().sum() + 0.5 * self.c * self.x.square().sum()

    def g(self, call):
        self.seen.append(("g", call))
        return 0.5 * self.y @ self.H @ self.y - self.y @ self.C @ self.x

    def best(self):
        return torch.linalg.solve(self.H, self.C @ self.x.detach())

    def hypergradient(self):
        return self.c * self.x.detach() + self.C.mT @ torch.linalg.solve(self.H, self.best() - self.t)

    def engine(self, **kw):
        return BoRep(self.f, self.g, {"x": self.x}, {"y": self.y}, **{"lr_y": 0.1, "lr_x": 1e-12, "nu": 0.1, **kw})


def test_refinement_finds_the_inner_minimum():
    q = Quadratic()
    assert q.engine().refine(2000, tol=1e-9) <= 1e-9
    assert torch.allclose(q.y.detach(), q.best(), atol=1e-8)


def test_z_and_the_hypergradient_converge_to_the_exact_ones():
    q = Quadratic()
    e = q.engine()
    e.refine(2000, tol=1e-12)
    for _ in range(300):
        h = e.hypergradient()["x"]
    assert torch.allclose(e.z["y"], torch.linalg.solve(q.H, q.best() - q.t), atol=1e-9)
    assert torch.allclose(h, q.hypergradient(), atol=1e-9)


def test_one_step_of_z_and_h_by_hand():
    q = Quadratic()
    e = q.engine(nu=0.07)
    e.z["y"].copy_(rand(5, seed=4))
    with torch.no_grad():
        q.y.copy_(rand(5, seed=5))
    z, y = e.z["y"].clone(), q.y.detach()
    h = e.hypergradient()["x"]
    z = z - 0.07 * (q.H @ z - (y - q.t))
    assert torch.allclose(e.z["y"], z) and torch.allclose(h, q.c * q.x.detach() + q.C.mT @ z)


def test_steps_have_exactly_the_length_of_the_rate():
    q = Quadratic()
    e = q.engine(lr_x=0.013)
    for _ in range(5):
        before = q.x.detach().clone()
        e.step()
        assert float((q.x.detach() - before).norm()) == pytest.approx(0.013)


def test_y_stands_still_between_periods():
    q = Quadratic()
    e = q.engine(period=3, inner=4)
    moved = []
    for _ in range(7):
        before = q.y.detach().clone()
        e.step()
        moved.append(not torch.equal(before, q.y.detach()))
    assert moved == [True, False, False, True, False, False, True]
    assert [c for _, c in q.seen] == list(range(len(q.seen)))  # every evaluation has a number of its own
    assert len(q.seen) == 3 * 4 + 7 * 2


def test_period_one_without_normalisation_is_the_plain_single_loop():
    q = Quadratic()
    x, y, z, u = q.x.detach().clone(), q.y.detach().clone(), torch.zeros(5, dtype=F64), torch.zeros(3, dtype=F64)
    e = q.engine(period=1, inner=1, normalise=False, lr_x=0.05, lr_y=0.08, nu=0.06, beta=0.5)
    for _ in range(20):
        e.step()
        y = y - 0.08 * (q.H @ y - q.C @ x)
        z = z - 0.06 * (q.H @ z - (y - q.t))
        u = 0.5 * u + 0.5 * (q.c * x + q.C.mT @ z)
        x = x - 0.05 * u
    assert torch.allclose(q.x.detach(), x) and torch.allclose(q.y.detach(), y)


def test_y_stays_in_the_ball_around_where_its_period_began():
    q = Quadratic()
    with torch.no_grad():
        q.y.add_(10.0)
    before = q.y.detach().clone()
    q.engine(radius=0.2, inner=7).step()
    assert float((q.y.detach() - before).norm()) == pytest.approx(0.2)


def test_the_outer_minimum_is_found():
    q = Quadratic()
    e = q.engine(lr_x=0.05)
    e.refine(500, tol=1e-9)
    first = float(q.hypergradient().norm())
    for k in range(150):
        e.lr_x = 0.1 * 0.96**k
        e.step()
    assert float(q.hypergradient().norm()) < 0.05 * first


def test_a_restored_engine_goes_on_bit_for_bit():
    runs = []
    for broken in (False, True):
        q = Quadratic()
        e = q.engine(lr_x=0.03, period=3)
        for k in range(8):
            if broken and k == 4:  # in the middle of a period
                saved = copy.deepcopy(e.state_dict())
                e = q.engine(lr_x=0.03, period=3)
                e.load_state_dict(saved)
            e.step()
        runs.append((q.x.detach().clone(), q.y.detach().clone(), e.z["y"], e.u["x"], q.seen))
    assert all(torch.equal(a, b) for a, b in zip(runs[0][:4], runs[1][:4])) and runs[0][4] == runs[1][4]
    with pytest.raises(StateMismatch, match="other tensors"):
        other = BoRep(q.f, q.g, {"other": q.x}, {"y": q.y})
        other.load_state_dict(e.state_dict())


def test_an_outer_variable_that_one_level_does_not_see():
    q = Quadratic(c=0.0)
    e = BoRep(lambda _: 0.5 * (q.y - q.t).square().sum(), q.g, {"x": q.x}, {"y": q.y}, lr_y=0.1, nu=0.1)
    h = e.hypergradient()["x"]  # df/dx does not exist
    assert torch.allclose(h, q.C.mT @ (0.1 * (q.y.detach() - q.t)))


def test_weights_of_examples_over_an_adapter():
    """Half the training labels are negated: the learned weights of those examples sink (a ridge makes the adapter's problem
    convex near its minimum)."""
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 2, bias=False, dtype=F64)
    model = torch.nn.Sequential(model)
    adapted = deltaw.attach(model, deltaw.Plan(deltaw.methods.LoRA(r=2, alpha=2.0), targets=["0"]))
    X, V, W = rand(24, 6), rand(24, 6, seed=1), rand(2, 6, seed=2)
    with torch.no_grad():
        clean, held = X @ W.mT, V @ W.mT
    wrong = torch.arange(24) % 2 == 0
    T = torch.where(wrong[:, None], -clean, clean)
    x = torch.zeros(24, dtype=F64, requires_grad=True)
    y = adapted.trainable()

    def g(_):
        each = (model(X) - T).square().sum(1)
        return (torch.sigmoid(x) * each).mean() + 1e-3 * sum(p.square().sum() for p in y.values())

    e = BoRep(
        lambda _: (model(V) - held).square().mean(), g, {"x": x}, y, lr_x=0.3, lr_y=0.05, nu=0.05, period=2, inner=5
    )
    e.refine(50)
    assert set(e.z) == {"0.A", "0.B"}
    for _ in range(60):
        e.step()
    assert float(x.detach()[wrong].mean()) < float(x.detach()[~wrong].mean()) - 0.5


def test_wrong_levels_are_named():
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(SpecError, match="leaf tensors"):
        BoRep(lambda _: x.sum(), lambda _: x.sum(), {"x": x}, {})
    with pytest.raises(SpecError, match="period"):
        BoRep(lambda _: x.sum(), lambda _: x.sum(), {"x": x}, {"y": x.detach().requires_grad_()}, period=0)


# ---- the reward of a step that is taken back


@pytest.mark.parametrize("warm", [0, 2])
def test_a_lookahead_leaves_no_trace(warm):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    x, t = torch.randn(8, 4), torch.randn(8, 3)

    def loss():
        return (model(x) - t).square().mean()

    for _ in range(warm):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    grads = [p.grad for p in model.parameters()]
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    found = lookahead_reward(optimizer, loss, lambda: -float(loss().detach()), {"lr": 0.5})
    assert before[1]["param_groups"] == optimizer.state_dict()["param_groups"]
    assert all(torch.equal(a, b) for a, b in zip(before[0].values(), model.state_dict().values()))
    for k, s in optimizer.state_dict()["state"].items():
        assert all(torch.equal(s[w], before[1]["state"][k][w]) for w in s)
    assert len(optimizer.state) == (2 if warm else 0) and all(p.grad is g for p, g in zip(model.parameters(), grads))
    twin = copy.deepcopy(model)  # the step itself
    other = torch.optim.AdamW(twin.parameters(), lr=0.5)
    other.load_state_dict({**copy.deepcopy(before[1]), "param_groups": other.state_dict()["param_groups"]})
    (twin(x) - t).square().mean().backward()
    other.step()
    assert found == pytest.approx(-float((twin(x) - t).square().mean().detach()), rel=1e-6)


def test_a_lookahead_that_fails_leaves_no_trace_either():
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([p], lr=0.1, momentum=0.9)

    def fail():
        raise RuntimeError("no reward")

    with pytest.raises(RuntimeError, match="no reward"):
        lookahead_reward(optimizer, lambda: p.square().sum(), fail, {"lr": 1.0})
    assert torch.equal(p.detach(), torch.ones(2)) and optimizer.param_groups[0]["lr"] == 0.1 and not optimizer.state


def test_lookahead_prefers_the_better_rate():
    p = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.SGD([p], lr=0.1)
    rewards = {
        lr: lookahead_reward(optimizer, lambda: p.square().sum(), lambda: -float(p.detach().square()), {"lr": lr})
        for lr in (0.01, 0.5, 1.5)
    }
    assert max(rewards, key=rewards.get) == 0.5 and rewards[0.5] == 0.0
