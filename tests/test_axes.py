"""The init axis and the update axis: starts and optimisers that combine with any method of the right form."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

import deltaw
from deltaw import Plan
from deltaw.errors import ShapeError, SpecError
from deltaw.methods import IA3, DoRA, LoRA, RsLoRA
from deltaw.methods.init import INITS, measured
from deltaw.methods.update import UPDATES
from deltaw.testing.laws.base import base_state, digest, gap
from deltaw.testing.tiny import Lookup, Tiny, settle, values

R, ALPHA = 4, 10.0
FREE = [k for k in INITS if not measured(INITS[k])]  # those that look at data have tests/test_inits.py
SHIFTING = [k for k in FREE if INITS[k].shifts]
METHODS = [LoRA(R, ALPHA), RsLoRA(R, ALPHA), DoRA(LoRA(R, ALPHA))]


def test_every_class_has_a_name_in_its_axis():
    for axis, table in deltaw.testing.AXES.items():
        for cls in table.table.values():
            if not cls.__module__.startswith("deltaw."):
                continue  # of another test
            assert getattr(getattr(deltaw.methods, axis), cls.__name__) is cls
    assert deltaw.methods.update.GaLore(r=0.25).r == 0.25 and deltaw.methods.rules.SwitchLoRA is not deltaw.methods.init.SwitchLoRA


def test_what_is_no_update_and_no_init_is_named():
    for wrong, words in [(UPDATES["galore"], r"write GaLore\(\)"), (3, "found 3"), (torch.optim.AdamW, "galore"), ("pissa", "no update 'pissa'")]:
        with pytest.raises(SpecError, match=words):
            Plan("lora", update=wrong)
        with pytest.raises(SpecError, match=words):
            deltaw.optimizer(nn.Linear(2, 2), wrong)
    with pytest.raises(SpecError, match=r"write PiSSA\(\)"):
        Plan("lora", init=INITS["pissa"])
    with pytest.raises(SpecError, match="shrink needs tensor and by: {'key': 'shrink', 'tensor': ..., 'by': ...}"):
        Plan("lora", rules="shrink")
    adapted = deltaw.attach(tiny(), Plan(LoRA(2), rules="sst"))  # a rule for another method
    with pytest.raises(SpecError, match="sst takes turns with singular vectors"):
        adapted.optimizer(1e-3)
    with pytest.raises(SpecError, match="no method 'galore', which is an update"):
        Plan("galore")
    with pytest.raises(SpecError, match="no init 'relora', which is a rule"):
        Plan("lora", init="relora")


def tiny(dtype=torch.float32):
    return settle(Tiny(), dtype)


X = values(3, 5, 16, name="x", dtype=torch.float32)


@pytest.mark.parametrize("dtype, tol", [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.key)
@pytest.mark.parametrize("init", FREE)
def test_first_output_is_the_base(init, method, dtype, tol):
    model, x = tiny(dtype), X.to(dtype)
    y, bits = model(x), digest(base_state(model))
    adapted = deltaw.attach(model, Plan(method, init=init))
    assert gap(model(x), y) <= tol
    assert digest(base_state(model)) == bits, "an init may not write to the base"
    adapted.detach()
    assert torch.equal(model(x), y)


@pytest.mark.parametrize("init", FREE)
def test_all_factors_train(init):
    model = tiny()
    adapted = deltaw.attach(model, Plan(LoRA(R, ALPHA), init=init))
    before = {k: t.clone() for k, t in adapted.state().items()}
    optimizer = adapted.optimizer(lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
    for name, t in adapted.state().items():
        assert torch.equal(t, before[name]) == ("offset" in name), name


@pytest.mark.parametrize("init", FREE)
def test_export_is_exact(init):
    """An offset is a constant of rank r, so the export of a shifting start is a plain LoRA of rank 2 r."""
    model = tiny(torch.float64)
    adapted = deltaw.attach(model, Plan(LoRA(R, ALPHA), init=init))
    with torch.no_grad():
        for name, p in adapted.trainable().items():
            p.add_(values(*p.shape, name=name, std=0.1))
    want, out = model(X.double()).detach(), adapted.to_lora()
    assert out.rank == (2 * R if init in SHIFTING else R) and set(out.error.values()) == {0.0}
    adapted.detach()
    with torch.no_grad():
        for name, (B, A) in out.factors.items():
            model.get_submodule(name).weight += B @ A
    assert gap(model(X.double()), want) < 1e-12


def test_saved_and_loaded_with_its_offset(tmp_path):
    for init in FREE:
        model = tiny()
        adapted = deltaw.attach(model, Plan(LoRA(R, ALPHA), init=init))
        with torch.no_grad():
            next(iter(adapted.trainable().values())).mul_(1.1)
        adapted.save(tmp_path / init)
        again = tiny()
        loaded = deltaw.load(again, tmp_path / init)
        for name, t in adapted.state().items():
            assert torch.equal(loaded.state()[name], t), (init, name)
        assert torch.equal(again(X), model(X))


def test_plan_with_axes_round_trips():
    for init in INITS:
        for update in UPDATES:
            plan = Plan(LoRA(R, ALPHA), init=init, update=update)
            assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_gaussian_is_one_over_r():
    model = settle(nn.ModuleDict({"a": nn.Linear(512, 256)}), torch.float32)
    entry = deltaw.attach(model, Plan(LoRA(8), init="gaussian")).entries()["a"]
    A = entry.get("A")
    assert abs(A.std().item() * 8 - 1) < 0.03 and abs(A.mean().item()) < 0.01
    assert not entry.get("B").any()


def test_orthogonal_cancels_with_both_factors_alive():
    model = settle(nn.ModuleDict({"a": nn.Linear(512, 256)}), torch.float64)
    entry = deltaw.attach(model, Plan(LoRA(8), init="orthogonal")).entries()["a"]
    A, B = entry.get("A"), entry.get("B")
    assert (B @ A).abs().max() < 1e-15
    for t in (A, B):  # rows of norm 1/10 of a half-rank Gaussian: each entry has variance (r/2) / (100 r)
        assert abs(t.std().item() / (0.1 * 0.5**0.5) - 1) < 0.2
        assert torch.linalg.matrix_rank(t) == 4
    with pytest.raises(ShapeError, match="even rank"):
        deltaw.attach(tiny(), Plan(LoRA(3), init="orthogonal"))


def test_pissa_takes_the_principal_part():
    model = tiny(torch.float64)
    entry = deltaw.attach(model, Plan(LoRA(R, ALPHA), init="pissa")).entries()["blocks.0.up"]
    A, B, W = entry.get("A"), entry.get("B"), model.blocks[0].up.weight
    U, S, V = torch.linalg.svd(W, full_matrices=False)
    torch.testing.assert_close(ALPHA / R * B @ A, U[:, :R] * S[:R] @ V[:R], rtol=0, atol=1e-12)
    torch.testing.assert_close(B.mT @ B, A @ A.mT, rtol=0, atol=1e-12)  # balanced


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("rs", [False, True])
def test_deterministic_starts_are_those_of_peft(init, rs):
    peft = pytest.importorskip("peft")
    model = tiny()
    config = peft.LoraConfig(r=R, lora_alpha=ALPHA, use_rslora=rs, target_modules=["sq", "up"], init_lora_weights=init)
    theirs = peft.get_peft_model(copy.deepcopy(model), config)
    ours = deltaw.attach(model, Plan((RsLoRA if rs else LoRA)(R, ALPHA), init=init))
    for name, entry in ours.entries().items():
        layer = theirs.base_model.model.get_submodule(name)
        A, B = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
        if init == "pissa":  # singular vectors have no sign of their own
            sign = torch.sign((entry.get("A") * A).sum(1))
            A, B = A * sign[:, None], B * sign
        assert gap(entry.get("A"), A) < 2e-5 and gap(entry.get("B"), B) < 2e-5
        moved = entry.get("offset.B") @ entry.get("offset.A")
        their_move = layer.base_layer.weight - model.get_submodule(name).weight
        assert gap(moved, their_move) < 2e-5
    assert gap(model(X), theirs(X)) < 2e-6


def test_a_start_that_does_not_apply_is_refused():
    model = tiny()
    keys = list(model.state_dict())
    with pytest.raises(SpecError, match="no such A and B"):
        deltaw.attach(model, Plan(IA3(), init="pissa"))
    assert list(model.state_dict()) == keys
    with pytest.raises(SpecError, match="nearest: pissa"):
        Plan(LoRA(), init="pisa")


# ---- updates


class WithTable(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.body = Lookup(16, 16), Tiny()  # a table whose name does not say so: `blocks.0`

    def forward(self, ids):
        return self.body(self.table(ids))


def test_lora_plus_groups_are_those_of_peft():
    peft = pytest.importorskip("peft")
    from peft.optimizers import create_loraplus_optimizer

    model = settle(WithTable(), torch.float32)
    for dora in (False, True):
        targets = ["sq", "up"] + ([] if dora else ["table.blocks.0"])
        config = peft.LoraConfig(r=R, target_modules=targets, use_dora=dora)
        theirs = peft.get_peft_model(copy.deepcopy(model), config)
        reference = create_loraplus_optimizer(
            theirs,
            torch.optim.AdamW,
            lr=1e-3,
            loraplus_lr_ratio=16,
            loraplus_weight_decay=0.1,
            loraplus_lr_embedding=5e-6,
        )
        name_of = {id(p): n for n, p in theirs.named_parameters()}
        want = {}
        for group in reference.param_groups:
            for p in group["params"]:
                name = name_of[id(p)].removeprefix("base_model.model.")
                site, _, rest = name.partition(".lora_")
                tensor = "g" if "magnitude" in rest else rest.removeprefix("embedding_")[0]
                want[f"{site}.{tensor}"] = (group["lr"], group["weight_decay"])
        method = DoRA(LoRA(R)) if dora else LoRA(R)
        update = {"key": "lora_plus", "ratio": 16.0, "embedding_lr": 5e-6, "weight_decay": 0.1}
        ours = deltaw.attach(model, Plan(method, targets=targets, update=update))
        names = {id(p): n for n, p in ours.trainable().items()}
        got = {
            names[id(p)]: (g["lr"], g["weight_decay"])
            for g in ours.optimizer(lr=1e-3).param_groups
            for p in g["params"]
        }
        assert got == want
        ours.detach()


def trained(update, steps=4):
    model = tiny()
    adapted = deltaw.attach(model, Plan(LoRA(R, ALPHA), update=update))
    optimizer = adapted.optimizer(lr=1e-2, weight_decay=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
    return adapted.state()


def test_ratio_one_is_adamw_bitwise():
    plain, plus = trained("adamw"), trained({"key": "lora_plus", "ratio": 1.0})
    assert all(torch.equal(plain[k], plus[k]) for k in plain)
    other = trained({"key": "lora_plus", "ratio": 4.0})
    assert any(not torch.equal(plain[k], other[k]) for k in plain)


def test_optimizer_state_is_keyed_by_name():
    adapted = deltaw.attach(tiny(), LoRA(R))
    for update in UPDATES:
        optimizer = UPDATES[update]().optimizer(adapted.trainable(), 1e-3)
        names = [n for g in optimizer.state_dict()["param_groups"] for n in g["param_names"]]
        assert sorted(names) == sorted(adapted.trainable())
