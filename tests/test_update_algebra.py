"""The algebra of optimisers: its laws over every frame x inner x residual x carry that composes."""

from __future__ import annotations

import copy
import itertools
import weakref
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deltaw.errors import ShapeError, SpecError
from deltaw.lowrank import signs
from deltaw.methods.update import UPDATES, About
from deltaw.methods.update.algebra import (
    SGD,
    Adafactor,
    Adam,
    Adam8bit,
    Basis,
    Coords,
    Draw,
    Drop,
    Ema,
    Feedback,
    Haar,
    HeadShared,
    Keep,
    Lion,
    Move,
    Move12,
    Online,
    Phi,
    Plain,
    Power,
    Prune,
    Raw,
    Reset,
    Rsvd,
    Side,
    Sign,
    SignSGD,
    Sketch,
    Sparse,
    Step,
    Sub,
    Svd,
    SvdSample,
    TwoSided,
    WeightNorm,
    Whole,
    turn,
)  # fmt: skip
from deltaw.methods.update.badam import BAdam, blocks
from deltaw.methods.update.frugal import Frugal
from deltaw.methods.update.galore_plus import GaLorePlus
from deltaw.methods.update.gradnormlorp import GradNormLoRP
from deltaw.testing import updates
from deltaw.testing.tiny import values
from deltaw.testing.updates import leaves

pytest.importorskip("bitsandbytes")  # the 8-bit inner optimiser

FRAMES: dict[str, Any] = {
    "whole": Whole(), "left": Side(3, Svd(), "left"), "right": Side(3, Svd(), "right"), "auto": Side(0.5, Rsvd()),
    "reverse": Side(3, Haar(), "reverse"), "sample": Side(3, SvdSample()), "power": Side(3, Power()), "both": TwoSided(3, Svd()),
    "heads": HeadShared(2, Svd(), heads=2), "sketch": Sketch(3), "online": Online(3), "columns": Coords(0.5), "rows": Coords(0.5, "rows"),
    "entries": Coords(0.3, "entries"),
}  # fmt: skip
INNERS: dict[str, Any] = {
    "sgd": SGD(), "sign": Sign(), "ema": Ema(), "adam": Adam(), "hf": Adam(eps=1e-6, convention="hf"), "adam8bit": Adam8bit(),
    "adafactor": Adafactor(), "lion": Lion(),
}  # fmt: skip
RESIDUALS: dict[str, Any] = {
    "drop": Drop(), "raw": Raw(0.1, 0.9), "sign": SignSGD(), "phi": Phi(), "feedback": Feedback(), "sparse": Sparse(0.1, 1),
}  # fmt: skip
CARRIES: dict[str, Any] = {"keep": Keep(), "reset": Reset(), "move": Move(), "move12": Move12(0.5), "prune": Prune(0.5)}
SHAPES = {"wide": (6, 10), "tall": (10, 6), "square": (8, 8)}

APART = {  # what does not compose, and why
    ("whole", "phi"): "no axis is cut", ("both", "phi"): "both axes are cut", ("entries", "phi"): "no axis is left",
    ("sketch", "feedback"): "up(down) is longer than the gradient", ("online", "feedback"): "the frame leaves the orthonormal ones",
    ("adafactor", "move12"): "sums over rows and columns have no coordinates to move",
}  # fmt: skip


def G(step: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    return values(*shape, name=f"g{step}", dtype=dtype) + 0.5 * values(*shape, name="drift", dtype=dtype)


def drive(rule: Any, shape: tuple[int, int], steps: int, state: dict[str, Any] | None = None, W: Tensor | None = None,
          begin: int = 0, lr: float = 1e-2) -> tuple[Tensor, dict[str, Any]]:  # fmt: skip
    W = values(*shape, name="W") if W is None else W
    state = {} if state is None else state
    for t in range(begin, steps):
        rule.step({"W": W}, {"W": G(t, shape)}, {"W": state}, Step({"W": lr}, {"W": 0.0}, 0, "lin"))
    return W, state


@pytest.mark.parametrize("inner", INNERS)
@pytest.mark.parametrize("frame", FRAMES)
def test_every_composition_runs_resumes_and_has_the_stated_state(frame, inner):
    for residual, carry in itertools.product(RESIDUALS, CARRIES):
        words = (FRAMES[frame], INNERS[inner], RESIDUALS[residual], CARRIES[carry], 2)
        if {(frame, residual), (inner, carry)} & APART.keys():
            with pytest.raises(SpecError):
                Sub(*words)
            continue
        rule, shape = Sub(*words), SHAPES["tall" if len(residual) % 2 else "wide"]
        W, state = drive(rule, shape, 6)
        what = f"{frame} x {inner} x {residual} x {carry}"
        assert W.isfinite().all() and not torch.equal(W, values(*shape, name="W")), what
        half, part = drive(rule, shape, 3)
        again, _ = drive(rule, shape, 6, copy.deepcopy(part), half.clone(), 3)
        assert torch.equal(again, W), f"{what}: not the same after a resume"
        kept = sum(t.numel() for t in leaves(state) if t.is_floating_point() and t.dim())
        assert kept == rule.floats(*shape), f"{what}: {kept} numbers are kept, {rule.floats(*shape)} stated"


ORTHONORMAL = [k for k in FRAMES if k not in ("sketch", "online")] + ["online"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("frame", ORTHONORMAL)
def test_law_1_down_undoes_up_and_up_down_is_a_projector(frame, shape):
    F, M = FRAMES[frame], G(0, SHAPES[shape])
    f = F.refresh(M, M, None, Draw(0, "x", 0))
    C = F.down(f, G(1, SHAPES[shape]))
    torch.testing.assert_close(F.down(f, F.up(f, C)), C)
    torch.testing.assert_close(F.up(f, F.down(f, F.up(f, C))), F.up(f, C))
    assert tuple(C.shape) == F.sizes(*SHAPES[shape])[0]
    W = M.clone()
    F.add(f, W, C, -0.5)
    torch.testing.assert_close(W, M - 0.5 * F.up(f, C))


def test_law_1_for_sketches_holds_in_the_mean():
    F, M = Sketch(4), G(0, (6, 10))
    made = [F.refresh(M, M, None, Draw(seed, "x", 0)) for seed in range(800)]
    mean = sum(F.up(f, F.down(f, M)) for f in made) / 800
    assert (mean - M).norm() < 0.1 * M.norm()
    assert not any(t.is_floating_point() for t in made[0].values())  # only the key is kept


FULL = {"left": Side(6, Svd(), "left"), "auto": Side(1.0, Rsvd()), "haar": Side(6, Haar()), "sample": Side(6, SvdSample()), "both": TwoSided(6, Svd()),
        "columns": Coords(1.0), "rows": Coords(1.0, "rows"), "entries": Coords(1.0, "entries"), "whole": Whole()}  # fmt: skip


@pytest.mark.parametrize("frame", FULL)
def test_law_2_full_rank_sgd_is_sgd(frame):
    W, _ = drive(Sub(FULL[frame], SGD(), every=1), (6, 10), 4)
    torch.testing.assert_close(W, values(6, 10, name="W") - 1e-2 * sum(G(t, (6, 10)) for t in range(4)))


@pytest.mark.parametrize("what", ["columns", "rows", "entries"])
def test_law_3_frugal_between_adam_and_sign_sgd(what):
    rule = Frugal(density=1.0, frame=what, every=0).rule()
    want, _ = drive(Plain(), (6, 10), 7)
    torch.testing.assert_close(drive(rule, (6, 10), 7)[0], want)
    kept = Sub(Coords(1.0, what), Adam(), SignSGD(), Keep(), every=2)
    torch.testing.assert_close(drive(kept, (6, 10), 7)[0], want)
    signs = values(6, 10, name="W") - 1e-2 * sum(G(t, (6, 10)).sign() for t in range(7))
    torch.testing.assert_close(drive(Frugal(density=0.0, frame=what, every=2).rule(), (6, 10), 7)[0], signs)


@pytest.mark.parametrize("shape", ["wide", "tall"])
def test_law_4_fira_at_full_rank_is_galore(shape):
    words: Any = {"inner": Adam(eps=1e-6, convention="hf"), "every": 3}
    fira = Sub(Side(6, Svd()), residual=Phi(), **words)
    torch.testing.assert_close(
        drive(fira, SHAPES[shape], 7)[0], drive(Sub(Side(6, Svd()), **words), SHAPES[shape], 7)[0]
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("frame", [k for k in FRAMES if k not in ("sketch",)])
def test_law_5_moves(frame, shape):
    F, mn = FRAMES[frame], SHAPES[shape]
    old, new = (F.refresh(G(t, mn), G(t, mn), None, Draw(0, "x", t)) for t in (0, 1))
    m, v = F.down(old, G(2, mn)), F.down(old, G(3, mn)).square()
    torch.testing.assert_close(F.move(old, old, m), m)
    torch.testing.assert_close(F.spread(old, old, v), v)
    torch.testing.assert_close(
        F.up(new, F.move(old, new, m)), F.up(new, F.down(new, F.up(old, m)))
    )  # P_new of the momentum
    s = {"m": m.clone(), "v": v.clone(), "step": torch.tensor(3.0)}
    Move()(Adam(), s, lambda C: F.move(old, new, C), lambda V: F.spread(old, new, V), Draw(0, "x", 0))
    torch.testing.assert_close(F.up(new, s["m"]), F.up(new, F.down(new, F.up(old, m))))
    s = {"m": m.clone(), "v": v.clone() + m**2, "step": torch.tensor(3.0)}
    Move12()(Adam(), s, lambda C: F.move(old, old, C), lambda V: F.spread(old, old, V), Draw(0, "x", 0))
    torch.testing.assert_close(s["m"], m)
    torch.testing.assert_close(s["v"], v + m**2)


def test_spread_is_the_variance_of_what_move_makes():
    F = Side(3, Svd())
    old, new = (F.refresh(G(t, (6, 10)), G(t, (6, 10)), None, Draw(0, "x", t)) for t in (0, 1))
    std = values(3, 10, name="std").abs()
    moved = torch.stack([F.move(old, new, std * values(3, 10, name=f"n{i}")) for i in range(3000)])
    torch.testing.assert_close(moved.var(0), F.spread(old, new, std**2), rtol=0.15, atol=0.02)


@dataclass(frozen=True)
class Shuffled(Basis):
    """The SVD's vectors with other signs, in another order."""

    order: bool = True

    def __call__(self, M: Tensor, k: int, old: Tensor | None, draw: Draw) -> Tensor:
        P = Svd()(M, k, old, draw) * draw.normal((k,), M, "flip").sign()
        return P[:, draw.uniform((k,), M, "order").argsort()] if self.order else P


def apart(carry: Any, inner: Any, order: bool = True, frame: Any = Side) -> float:
    """The share of the displacement by which signs (and order) of the singular vectors change a run with refreshes at 0, 4, 8."""
    start = values(6, 10, name="W")
    one, other = (
        drive(Sub(frame(4, b), inner, SignSGD(0.1), carry, 4), (6, 10), 12)[0] for b in (Svd(), Shuffled(order))
    )
    return float((one - other).norm() / (one - start).norm())


@pytest.mark.parametrize("frame", [Side, TwoSided])
@pytest.mark.parametrize("inner", ["ema", "adam", "lion", "sgd"])
@pytest.mark.parametrize("carry", ["reset", "move12"])
def test_law_9_signs_and_order_of_singular_vectors_do_not_matter(carry, inner, frame):
    assert apart(CARRIES[carry], INNERS[inner], frame=frame) < 1e-9


def test_law_9_move_transports_all_that_ema_and_lion_have_and_the_signs_of_adam():
    assert apart(Move(), Ema()) < 1e-9 and apart(Move(), Lion()) < 1e-9
    assert apart(Move(), Adam(), order=False) < 1e-9
    assert apart(Move(), Adam()) > 1e-3  # v stays with the number of its coordinate


def test_law_9_keep_depends_on_signs():
    assert apart(Keep(), Adam(), order=False) > 0.05


# the policy for SVDs


def test_signs_are_fixed_on_both_sides():
    M = G(0, (6, 10))
    P = Svd()(M, 4, None, Draw(0, "x", 0))
    assert (P.gather(0, P.abs().argmax(0, keepdim=True)) > 0).all()
    torch.testing.assert_close(Svd()(-M, 4, None, Draw(0, "x", 0)), P)
    torch.testing.assert_close(torch.linalg.svd(M.mT, full_matrices=False)[2][:4].mT.abs(), P.abs())
    flipped = P * torch.tensor([1.0, -1, -1, 1])
    torch.testing.assert_close(flipped * signs(flipped), P)


@pytest.mark.parametrize("shape", [(60, 80), (80, 60)])
def test_rsvd_is_as_exact_as_it_says(shape):
    d, k = 60, 8
    U, V = (torch.linalg.qr(values(n, d, name=f"q{n}{shape}"))[0] for n in shape)
    M = U @ torch.diag(0.8 ** torch.arange(d, dtype=torch.float64)) @ V.mT
    for power, most in ((2, 1e-3), (4, 1e-6)):
        P, exact = Rsvd(power=power)(M, k, None, Draw(0, "x", 0)), Svd()(M, k, None, Draw(0, "x", 0))
        angle = torch.linalg.matrix_norm(exact - P @ (P.mT @ exact), 2)  # sine of the largest principal angle
        assert angle < most
        torch.testing.assert_close(P.mT @ P, torch.eye(k, dtype=M.dtype))
    a, b = (Rsvd()(M, k, None, Draw(3, "layer", 200)) for _ in range(2))
    assert torch.equal(a, b)  # every process has the same sketch


def test_svd_sample_draws_without_replacement_by_singular_value():
    sigma = torch.tensor([4.0, 3, 2, 1, 0], dtype=torch.float64)
    M, counts, firsts = torch.diag(sigma), torch.zeros(5), torch.zeros(5)
    for t in range(1500):
        P = SvdSample()(M, 2, None, Draw(0, "x", t))
        assert torch.linalg.matrix_rank(P) == 2
        counts += P.abs().sum(1) > 0.5
        firsts += SvdSample()(M, 1, None, Draw(1, "x", t))[:, 0].abs()
    assert (counts.diff() < 0).all() and counts[-1] == 0
    torch.testing.assert_close(firsts.double() / 1500, sigma / 10, atol=0.04, rtol=0)
    pairs = [
        (i, j) for i in range(4) for j in range(4) if i != j
    ]  # one after the other: P(i then j) = s_i s_j / (S (S - s_i))
    want = torch.zeros(5, dtype=torch.float64)
    for i, j in pairs:
        want[[i, j]] += sigma[i] * sigma[j] / (10 * (10 - sigma[i]))
    torch.testing.assert_close(counts.double() / 1500, want, atol=0.04, rtol=0)
    full = SvdSample()(M, 5, None, Draw(0, "x", 0))  # too few positive values: the others come last, they do not fail
    torch.testing.assert_close(full.mT @ full, torch.eye(5, dtype=M.dtype))


# single words


def test_the_signs_of_a_rest_that_is_rounding_are_no_step():
    M = values(6, 2, name="a") @ values(2, 10, name="b")
    rule, W = Sub(Side(2, Svd()), SGD(), SignSGD()), torch.zeros(6, 10, dtype=torch.float64)
    rule.step({"W": W}, {"W": M}, {"W": {}}, Step({"W": 1.0}, {"W": 0.0}, 0, "lin"))
    torch.testing.assert_close(W, -M)


def test_phi_grows_by_one_per_cent():
    s: dict[str, Tensor] = {}
    rule, norms = Sub(Side(3, Svd()), Adam(), Phi(), every=3), []
    state: dict[str, Any] = {"residual": s}
    W = values(6, 10, name="W")
    for t in range(12):
        rule.step({"W": W}, {"W": G(t, (6, 10)) * (1 + t)}, {"W": state}, Step({"W": 1e-2}, {"W": 0.0}, 0, "lin"))
        norms.append(float(s["norm"]))
    assert all(b <= 1.01 * a * (1 + 1e-6) for a, b in zip(norms, norms[1:]))
    assert any(b > 1.0099 * a for a, b in zip(norms, norms[1:]))  # and it was needed


@pytest.mark.parametrize("carry", ["keep", "reset", "move"])
def test_feedback_loses_nothing(carry):
    """up(m) + (1 - beta) E: what a step adds to it is (1 - beta) G, what it forgets is the decay of up(m)."""
    beta, shape = 0.9, (6, 10)
    rule = Sub(Side(3, Svd()), Ema(beta, corrected=False), Feedback(beta), CARRIES[carry], every=2)
    W, state, held, owed = values(*shape, name="W"), {}, torch.zeros(shape).double(), torch.zeros(shape).double()
    for t in range(7):
        _, state = drive(rule, shape, t + 1, state, W, t)
        H, E = rule.frame.up(state["frame"], state["inner"]["m"]), state["residual"]["error"]
        torch.testing.assert_close(H + (1 - beta) * E, beta * held + (1 - beta) * (owed + G(t, shape)))
        held, owed = H.clone(), E.clone()


def test_sparse_on_all_places_is_adam_on_the_rest():
    rule = Sub(Side(3, Svd()), Adam(), Sparse(1.0, 0), every=0)
    W, state = drive(rule, (6, 10), 5)
    want, f, inner, rest = values(6, 10, name="W"), state["frame"], {}, {}
    for t in range(5):
        C = rule.frame.down(f, G(t, (6, 10)))
        want -= 1e-2 * (rule.frame.up(f, Adam()(C, inner)[0]) + Adam()(G(t, (6, 10)) - rule.frame.up(f, C), rest)[0])
    torch.testing.assert_close(W, want)


def test_the_online_frame_comes_closer_to_a_gradient_that_stays():
    F, M = Online(3, rate=1e-2, decay=0.0), G(0, (6, 10))
    f = F.refresh(G(1, (6, 10)), M, None, Draw(0, "x", 0))
    missed = []
    for _ in range(60):
        missed.append(float((M - F.up(f, F.down(f, M))).norm()))
        F.post(f, M, F.down(f, M), 1e-2)
    assert missed[0] == missed[1] and missed[-1] < 0.8 * missed[0]
    still = Online(3, rate=0.0).refresh(M, M, None, Draw(0, "x", 0))
    P = still["left"].clone()
    for _ in range(3):
        Online(3, rate=0.0).post(still, M, M, 1e-2)
    assert torch.equal(still["left"], P)


def test_one_head_serves_equal_heads_and_all_heads_are_asked():
    head = G(0, (4, 10))
    f = HeadShared(3, Svd(), heads=3).refresh(head.repeat(3, 1), head, None, Draw(0, "x", 0))
    plain = Side(3, Svd(), "right").refresh(head.repeat(3, 1), head, None, Draw(0, "x", 0))
    torch.testing.assert_close(f["right"], plain["right"])
    M, heads = G(0, (12, 10)), {t: None for t in range(3)}
    exact = [Svd()(h.mT, 3, None, Draw(0, "x", 0)) for h in M.chunk(3)]
    for t in range(30):
        P = HeadShared(3, Svd(), heads=3).refresh(M, M, None, Draw(0, "x", t))["right"]
        heads[next(i for i, e in enumerate(exact) if torch.equal(e, P))] = P
    assert all(h is not None for h in heads.values())
    with pytest.raises(ShapeError, match="do not divide"):
        HeadShared(3, Svd(), heads=5).refresh(M, M, None, Draw(0, "x", 0))
    rule = GaLorePlus(r=2, heads=4, kv_heads=2)
    assert rule.rule("layers.0.self_attn.q_proj.weight").frame.heads == 4
    assert rule.rule("layers.0.self_attn.v_proj.weight").frame.heads == 2
    assert not isinstance(rule.rule("layers.0.self_attn.o_proj.weight").frame, HeadShared)


def test_adam8bit_is_adam_to_the_resolution_of_a_byte():
    shape = (20, 30)
    for inner in (Adam(), Adam(eps=1e-6, convention="hf")):
        exact, _ = drive(Sub(Whole(), inner), shape, 20)
        W, state = drive(Sub(Whole(), Adam8bit(inner.betas, inner.eps, inner.convention)), shape, 20)
        moved = exact - values(*shape, name="W")
        assert 0 < (W - exact).norm() < 0.05 * moved.norm()
        assert {k: t.dtype for k, t in state["inner"].items()} == {
            "step": torch.float32, "m": torch.uint8, "v": torch.uint8, "m.scale": torch.float64, "v.scale": torch.float64,
        }  # fmt: skip
    assert Adam8bit().floats(shape) == 2 * 3


@pytest.mark.parametrize("key", ["galore", "galore2", "frugal"])
@pytest.mark.parametrize("word", ["adam8bit", "adafactor", "lion"])
def test_rules_take_another_inner_optimiser(key, word):
    rule = updates.small(UPDATES[key](inner=word))
    updates.resumed_is_uninterrupted(rule)
    updates.state_is_as_large_as_stated(rule)
    updates.state_is_tensors(rule)
    updates.learns(rule)
    with pytest.raises(SpecError, match="inner is one of"):
        UPDATES[key](inner="adamw").rule()


def test_adafactor_is_the_one_of_transformers():
    reference = pytest.importorskip("transformers.optimization").Adafactor
    W = nn.Parameter(values(6, 10, name="W"))
    opt = reference([W], lr=1e-2, scale_parameter=False, relative_step=False)
    for t in range(6):
        W.grad = G(t, (6, 10))
        opt.step()
    torch.testing.assert_close(drive(Sub(Whole(), Adafactor()), (6, 10), 6)[0], W.detach())


def test_lion_by_hand():
    W, m = values(6, 10, name="W"), torch.zeros(6, 10, dtype=torch.float64)
    for t in range(30):
        g = values(6, 10, name=f"g{t}")
        W, m = W - 1e-2 * (0.9 * m + 0.1 * g).sign(), 0.99 * m + 0.01 * g
    mine, s = values(6, 10, name="W"), {}
    for t in range(30):
        mine -= 1e-2 * Lion()(values(6, 10, name=f"g{t}"), s)[0]
    torch.testing.assert_close(mine, W)


def test_moved_variances_stay_positive():
    """v̂ < m̂² happens where beta2 is small: the difference has no sign that counts."""
    m, v = values(3, 10, name="m"), 1e-3 * values(3, 10, name="v").square()
    F, s = Side(3, Svd()), {"m": m.clone(), "v": v.clone(), "step": torch.tensor(50.0)}
    old, new = (F.refresh(G(t, (6, 10)), G(t, (6, 10)), None, Draw(0, "x", t)) for t in (0, 1))
    Move12()(Adam((0.9, 0.9)), s, lambda C: F.move(old, new, C), lambda V: F.spread(old, new, V), Draw(0, "x", 0))
    assert (s["v"] >= 0).all()


@pytest.mark.parametrize("when", ["before", "after"])
def test_weight_decay_is_decoupled_and_has_its_place(when):
    rule, g = Sub(Whole(), SGD(), decay=when), G(0, (6, 10))
    start = values(6, 10, name="W")
    W = start.clone()
    rule.step({"W": W}, {"W": g}, {"W": {}}, Step({"W": 0.1}, {"W": 0.5}, 0, "lin"))
    torch.testing.assert_close(W, 0.95 * start - 0.1 * g if when == "before" else 0.95 * (start - 0.1 * g))
    rule, W = WeightNorm(Sub(Whole(), SGD(), scale=0.0), SGD()), start.clone()
    rule.step({"W": W}, {"W": g}, {"W": {}}, Step({"W": 0.1}, {"W": 0.5}, 0, "lin"))
    v = start / start.norm(dim=1, keepdim=True)
    torch.testing.assert_close(W, v * (0.95 * start.norm(dim=1) - 0.1 * (v * g).sum(1))[:, None])


# turns and other sinks


@pytest.mark.parametrize("order", ["random", "ascending", "descending"])
def test_a_pass_gives_each_block_its_turn_once(order):
    for first in (0, 5):
        assert sorted(b for k in range(first, first + 5) for b in turn(k, 5, 1, order, 0)) == list(range(5))
    assert {b for k in range(3) for b in turn(k, 5, 2, order, 0)} == set(range(5))
    assert [turn(k, 4, 2, "mirror", 0) for k in range(3)] == [[0, 3], [1, 2], [0, 3]]
    assert [turn(k, 5, 1, "descending", 0) for k in range(3)] == [[4], [3], [2]]
    with pytest.raises(SpecError, match="pairs"):
        turn(0, 5, 2, "mirror", 0)


def test_blocks_are_layers():
    names = ["model.embed_tokens.weight", "model.layers.0.mlp.up.weight", "model.layers.0.norm.weight", "model.layers.1.mlp.up.weight",
             "model.norm.weight", "lm_head.weight"]  # fmt: skip
    assert list(blocks(names).values()) == [0, 1, 1, 2, 3, 3]
    assert list(blocks(["layers.0.experts.7.up.weight", "layers.0.experts.8.up.weight"]).values()) == [0, 0]
    assert list(blocks(["wide.weight", "tall.weight", "tall.bias"]).values()) == [0, 1, 1]


def test_badam_leaves_other_blocks_bit_by_bit_and_frees_their_state():
    p = {f"layers.{i}.weight": nn.Parameter(values(4, 6, name=f"l{i}", dtype=torch.float32)) for i in range(3)}
    opt = BAdam(every=2, order="ascending", weight_decay=0.1).optimizer(p, 1e-2, about=About())
    old = None
    for t in range(6):
        before = {k: v.detach().clone() for k, v in p.items()}
        for v in p.values():
            v.grad = G(t, (4, 6), torch.float32)
        opt.step()
        for i, (k, v) in enumerate(p.items()):
            sizes = [x for x in leaves(opt.state[v]) if x.dim()]
            if i == t // 2:
                assert not torch.equal(v, before[k]) and len(sizes) == 2
            else:
                assert torch.equal(v, before[k]) and not sizes
        if t == 1:
            old = weakref.ref(opt.state[p["layers.0.weight"]]["turn"]["rule"]["m"])
            assert old() is not None
        if t == 2:
            assert old() is None


def test_badam_adds_up_steps_that_bfloat16_does_not_show():
    low = {"layers.0.weight": nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))}
    opt = BAdam(every=50).optimizer(low, 1e-4)
    for _ in range(40):
        low["layers.0.weight"].grad = torch.ones(4, 4, dtype=torch.bfloat16)
        opt.step()
    torch.testing.assert_close(low["layers.0.weight"].detach().float(), torch.full((4, 4), 0.996), atol=2e-3, rtol=0)
    assert (low["layers.0.weight"] < 1).all()


def test_weight_norm_rows_have_the_size_g():
    p = {"lin.weight": nn.Parameter(values(6, 10, name="W"))}
    with torch.no_grad():
        p["lin.weight"][2] = 0
    opt = GradNormLoRP(r=3, every=2).optimizer(p, 1e-2)
    for t in range(5):
        p["lin.weight"].grad = G(t, (6, 10))
        opt.step()
    torch.testing.assert_close(
        p["lin.weight"].detach().norm(dim=1), opt.state[p["lin.weight"]]["g"].abs() * (torch.arange(6) != 2)
    )
    assert (p["lin.weight"][2] == 0).all()


# section 0.3 of the specification


@pytest.mark.parametrize("m, n", [(24, 40), (16, 16)])
def test_sizes_of_states(m, n):
    """Floats of optimiser state for an m x n matrix, m <= n."""
    r, rho = 4, 0.25
    stated = {
        "galore": m * r + 2 * n * r, "galore2": m * r + 2 * n * r, "sara": m * r + 2 * n * r, "fira": m * r + 2 * n * r,
        "osd": m * r + 2 * n * r + 2 * m * r, "frugal": 2 * rho * m * n, "flora": n * r + m + n, "apollo": 2 * n * r, "badam": 2 * m * n,
        "ldadam": m * r + 2 * n * r + m * n, "gradnormlorp": (m + n) * r + 2 * r * r + 4 * m,
        "galore_plus": m * r + 2 * n * r + 2 * round(0.01 * m * n),
    }  # fmt: skip
    if m == n:  # square matrices have the frame on the right, which is the same size
        assert stated["galore"] == 3 * m * r
    for key, want in stated.items():
        rule = UPDATES[key](**({} if key in ("frugal", "badam") else {"r": r}))
        assert rule.floats(m, n) == want, key
