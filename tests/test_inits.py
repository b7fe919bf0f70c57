"""Every law and every closed form on every initialisation, over the registry."""

from __future__ import annotations

import pytest
import torch

import deltaw
from deltaw import Plan
from deltaw.errors import ShapeError, SpecError
from deltaw.methods import DoRA, LoRA, LoRAXS, RsLoRA
from deltaw.methods.init import INITS
from deltaw.methods.init.lora_ga import LoRAGA
from deltaw.methods.init.lora_sb import LoRASB
from deltaw.testing import closed, inits
from deltaw.testing.laws.base import gap
from deltaw.testing.report import timed
from deltaw.testing.tiny import Tiny, settle

INSTANCES = [pytest.param(init, id=f"{key}-{k}") for key in INITS for k, init in enumerate(inits.inits_of(key))]


@pytest.mark.parametrize("law", list(inits.LAWS))
@pytest.mark.parametrize("init", INSTANCES)
def test_law(init, law):
    result = timed(law, init, "", lambda: inits.LAWS[law](init))
    assert result.outcome != "failed", result.detail


@pytest.mark.parametrize("init", [i for i in INSTANCES if closed.closed("init", i.values[0].key)])
def test_closed_form(init):
    result = timed("closed", init, "", lambda: inits.compare_closed(init))
    assert result.outcome == "passed", result.detail


@pytest.mark.parametrize("method", [RsLoRA(4, 10.0), DoRA(LoRA(4, 10.0))], ids=lambda m: m.key)
@pytest.mark.parametrize("init", [k for k in INITS if INITS[k].start == "identity"])
def test_identity_under_other_scales_and_wrappers(init, method):
    model, plan = settle(Tiny(), torch.float64), Plan(method, init=init)
    y = model(inits.x_of(torch.float64))
    deltaw.attach(model, plan, stats=inits.stats_of(model, plan))
    assert gap(model(inits.x_of(torch.float64)), y) < 1e-12


def test_first_step_of_lora_ga_follows_the_gradient():
    """With B = f U_b and A = f V_a, plain descent moves W by -lr s² f² (P_B G + G P_A): the 2 r leading parts of G."""
    model, plan = settle(Tiny(), torch.float64), Plan(LoRA(4, 10.0), init=LoRAGA())
    stats = inits.stats_of(model, plan)
    entry = deltaw.attach(model, plan, stats=stats).entries()["blocks.1.up"]
    G, A, B, s = stats.sites["blocks.1.up"]["gradient"], entry.get("A").detach(), entry.get("B").detach(), 2.5
    f = 24**0.25 / 4
    for square in (A @ A.mT, B.mT @ B):
        torch.testing.assert_close(square, f * f * torch.eye(4, dtype=torch.float64))
    moved = s * (B @ (s * B.mT @ G) + (s * G @ A.mT) @ A)
    U, S, V = torch.linalg.svd(G, full_matrices=False)
    assert gap(moved, s * s * f * f * (U[:, :8] * S[:8]) @ V[:8]) < 1e-9


def test_random_directions_of_lora_ga_are_disjoint():
    for mode, overlap in (("official", 0), ("peft", 4)):
        init = LoRAGA("random", "unit", mode=mode)
        a, b = init.pairs(deltaw.spec.Start("x", "linear", None), 4)  # type: ignore[arg-type]
        assert len(set(a.tolist()) & set(b.tolist())) == overlap and len(set(a.tolist() + b.tolist())) == 8 - overlap


def test_core_of_lora_sb_sees_the_gradient_in_its_coordinates():
    model, plan = settle(Tiny(), torch.float64), Plan(LoRAXS(4, 4.0), init=LoRASB())
    G = inits.stats_of(model, plan).sites
    adapted = deltaw.attach(model, plan, stats=inits.stats_of(model, plan))
    for name, entry in adapted.entries().items():
        A, B, eye = entry.get("A"), entry.get("B"), torch.eye(4, dtype=torch.float64)
        assert gap(A @ A.mT, eye) < 1e-12 and gap(B.mT @ B, eye) < 1e-12 and not A.requires_grad and not B.requires_grad
        U = -5e-6 * torch.sign(G[name]["gradient"])
        left = torch.linalg.svdvals(U)[4:].norm()
        torch.testing.assert_close((U - B @ entry.get("R") @ A).norm().detach(), left, rtol=1e-9, atol=0)
    assert sum(p.numel() for p in adapted.trainable().values()) == 4 * 16


def test_a_start_that_does_not_fit_is_refused():
    model = settle(Tiny(), torch.float64)
    for method, init, error, word in (
        (LoRA(4), "lora_sb", SpecError, "no such R"),
        (LoRAXS(4), "lora_ga", SpecError, "no such A and B"),
        (LoRA(9), "lora_ga", ShapeError, "18 directions"),
        (LoRA(9), "eva", ShapeError, "components"),
    ):
        plan = Plan(method, init=init)
        stats = inits.stats_of(model, Plan(LoRA(4), init=init))
        if init == "eva":
            plan = Plan(method, init=inits.Fixed(INITS[init]()))
        with pytest.raises(error, match=word):
            deltaw.attach(model, plan, stats=stats)
        assert "_deltaw" not in model.__dict__
