"""The matrices: what every method can do (never less than PEFT), what it can be composed with; and several methods at once."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import deltaw
from deltaw import Plan, matrix
from deltaw.cli import main
from deltaw.errors import NotMergeable, ShapeError, SpecError
from deltaw.matrix import cells, composition
from deltaw.methods import HRA, IA3, Asym, DoRA, Full, HiRA, LoHa, LoRA, ReFT, VeRA
from deltaw.spec import METHODS, Param
from deltaw.testing.laws.base import Case, gap, push
from deltaw.testing.tiny import Tied, Tiny, settle, values

RECORDS = Path(__file__).parents[1] / "benchmarks" / "results"
X = values(3, 5, 16, name="x")


def tiny():
    return settle(Tiny(), torch.float64)


@pytest.fixture(scope="module")
def ours():
    return matrix.capabilities()


def faults(rows):
    return [f"{k} / {c}: {v.detail}" for k, row in rows.items() for c, v in row.items() if v.outcome == cells.BROKEN]


# ---- capabilities


def test_every_cell_is_yes_or_a_reason(ours):
    assert list(ours) == list(METHODS) and not faults(ours)
    for key, row in ours.items():
        assert list(row) == list(matrix.COLUMNS)
        assert all(cell.works or (len(cell.detail) > 20 and cell.error) for cell in row.values()), key
    assert all(cell.works for cell in ours["lora"].values()) and ours["lora"]["exact LoRA"].detail == "rank 3"
    assert not ours["dora"]["exact LoRA"].works and ours["dora"]["cut LoRA"].works
    assert not ours["reft"]["merge"].works and ours["reft"]["merge"].error == "NotMergeable"
    assert not ours["xlora"]["merge"].works and ours["xlora"]["weighted sum"].detail.startswith("live only")


WORSE: dict[tuple[str, str], str] = {}
"""(key, column): why PEFT's yes there is no loss here. Empty, and to be kept so."""


def test_no_cell_is_worse_than_peft(ours):
    """PEFT is run here and now; the record is what this gave before."""
    pytest.importorskip("peft")
    from deltaw.matrix import theirs

    worse = {(k, c) for k, row in theirs.capabilities().items() for c, v in row.items() if v.works and not ours[k][c].works}
    assert worse == {pair for pair in WORSE if pair[0] in METHODS}


def test_the_record_knows_no_worse_cell_and_every_method_of_peft(ours):
    """Of what PEFT can do; `python benchmarks/peft_matrix.py` writes a new one."""
    from deltaw.matrix import theirs

    newest = max(RECORDS.glob("peft-matrix-*.json"))
    record = json.loads(newest.read_text())
    assert set(record["worse_than_peft"]) == {": ".join(pair) for pair in WORSE if pair[0] in METHODS}
    pytest.importorskip("peft")
    has = {k for k in METHODS if any(theirs.config_of(m) is not None for m in deltaw.testing.instances(METHODS[k]))}
    assert set(record["cells"]) == has, f"{newest.name} is old: python benchmarks/peft_matrix.py"
    for key, row in record["cells"].items():
        found = {c for c, cell in row.items() if cell["peft"]["outcome"] == cells.YES and not ours[key][c].works}
        assert found == {c for k, c in WORSE if k == key}, key


class Lying(deltaw.ops.Op):
    """Its matrix is not what it does."""

    def __init__(self, op):
        self.op, self.shape, self.rmv = op, op.shape, op.rmv

    like = property(lambda self: self.op.like)

    def __call__(self, x):
        return self.op(x)

    def dense(self):
        return 2.0 * self.op.dense()


def test_the_matrix_has_teeth():
    """A method that cannot do what it says is found, and its cell says what went wrong."""

    def weight(self, W, p):
        return W + Lying(deltaw.ops.chain(p.B, p.A))

    broken = type("Broken", (LoRA,), {"__module__": LoRA.__module__, "weight": weight})
    found = {c: cells.attempt(lambda run=run: run(broken(r=3))) for c, run in matrix.COLUMNS.items()}
    assert found["merge"].outcome == found["Linear"].outcome == cells.BROKEN and "relative difference" in found["merge"].detail
    crash = cells.attempt(lambda: 1 / 0)
    assert crash.outcome == cells.BROKEN and "ZeroDivisionError" in crash.detail


def test_the_command_prints_matrices(capsys):
    def run(*words):
        assert main(["methods", *words]) == 0
        return capsys.readouterr().out

    data = json.loads(run("--matrix", "--only", "lora", "--only", "reft", "--json"))["cells"]
    assert data["lora"]["merge"]["outcome"] == "yes" and data["reft"]["merge"]["error"] == "NotMergeable"
    text = run("--matrix", "--only", "reft", "--markdown")
    assert "| `reft` |" in text and "no [1]" in text and "\n1. a stream has no weight" in text
    text = run("--compositions", "--only", "ia3")
    assert "in dora" in text and "\n[1] " in text
    assert main(["methods", "--matrix", "--only", "lorra"]) == 2 and "nearest: lora" in capsys.readouterr().err
    assert main(["methods", "--markdown"]) == 2


# ---- compositions

PAIRS = [(k, c) for k in METHODS if METHODS[k].sites == "weight" for c in composition.columns()]
SAMPLE = sorted(random.Random(4).sample(PAIRS, min(60, len(PAIRS))))


@pytest.mark.parametrize("key, column", SAMPLE, ids=lambda v: v.replace(" ", "_"))
def test_pairs_work_or_say_why(key, column):
    """A seeded sample, with files: first output, forward = dense, gradients, merge, saved and loaded bit for bit."""
    cell = composition.one(key, column, deep=True)
    assert cell.outcome != cells.BROKEN, cell.detail
    assert cell.works or (len(cell.detail) > 20 and cell.error)


def test_all_pairs_of_the_plainest_method_work():
    assert all(cell.works for cell in matrix.compositions(["lora"])["lora"].values())
    assert set(composition.columns()) >= {"in dora", "in drop", "init pissa", "quantised", "overrides"}


def test_an_init_is_refused_where_the_change_is_no_product():
    """VeRA and HiRA have tensors called A and B too; what counts is whether the change is s B A, site by site."""
    for key, why in (("vera", "shared by all sites"), ("hira", "no such A and B")):
        cell = composition.one(key, "init pissa")
        assert not cell.works and cell.error == "SpecError" and why in cell.detail, key
    keys = list(tiny().state_dict())
    model = tiny()
    with pytest.raises(SpecError, match="no such A and B"):
        deltaw.attach(model, Plan(HiRA(r=4), init="gaussian"))
    assert list(model.state_dict()) == keys


def test_an_init_finds_the_scale_in_the_formula():
    """Asym has no `scale`; its alpha / r is in the formula only."""
    model = tiny()
    y = model(X)
    adapted = deltaw.attach(model, Plan(Asym(r=4, alpha=10.0), init="pissa"))
    assert gap(model(X), y) < 1e-12
    entry, W = adapted.entries()["blocks.0.up"], model.blocks[0].up.weight
    U, S, V = torch.linalg.svd(W, full_matrices=False)
    torch.testing.assert_close(2.5 * entry.get("B") @ entry.get("A"), U[:, :4] * S[:4] @ V[:4], rtol=0, atol=1e-12)


def test_wrapping_twice_is_refused():
    with pytest.raises(SpecError, match="'g'"):
        deltaw.attach(tiny(), DoRA(DoRA(LoRA(r=2))))


# ---- several methods on one model


def two(first, second, **second_plan):
    model = tiny()
    for name, method, more in (("a", first, {}), ("b", second, second_plan)):
        push(deltaw.attach(model, Plan(method, **more), name))
    return model


MIXED = [
    (LoRA(r=3), {}, IA3(), {}),
    (DoRA(LoRA(r=2)), {}, LoHa(r=2), {"targets": ["up"]}),
    (HRA(r=4), {}, VeRA(r=4), {"targets": ["sq"]}),
]


@pytest.mark.parametrize("a, plan_a, b, plan_b", MIXED, ids=lambda v: getattr(v, "key", ""))
def test_two_methods_live_together_and_merged(a, plan_a, b, plan_b, tmp_path):
    model = two(a, b, **plan_b)
    weights = [0.5, -2.0]
    with deltaw.activate(model, ["a", "b"], weights):
        y = model(X)
    blend = deltaw.blend(model, ["a", "b"], weights)
    merged = blend.merge(probe=X)
    assert merged.certificate.max_error < 1e-12 and gap(merged.model()(X), y) < 1e-12
    merged.save(tmp_path / "merged")
    assert gap(model(X), y) > 1e-3, "what was live stays live"
    # by hand: W + sum of w_i (W_i - W)
    base = dict(tiny().named_parameters())
    hand = tiny()
    with torch.no_grad():
        for adapter, w in zip(deltaw.adapters(model), weights):
            for name, tensor in adapter.merge().changed():
                hand.get_parameter(name).add_(w * (tensor - base[name]))
    assert gap(hand(X), y) < 1e-12


def test_a_blend_becomes_one_adapter(tmp_path):
    """Exactly: the factors side by side. PEFT reads it as a plain LoRA."""
    model = two(LoRA(r=3), LoHa(r=2), targets=["up"])
    with deltaw.activate(model, ["a", "b"], [0.5, -2.0]):
        y = model(X)
    made = deltaw.blend(model, ["a", "b"], [0.5, -2.0]).to_lora()
    assert made.rank == 3 + 4 and set(made.error.values()) == {0.0}
    made.save(tmp_path)
    again = tiny()
    deltaw.load(again, tmp_path)
    assert gap(again(X), y) < 1e-6  # factors are float32 files
    cut = deltaw.blend(model, ["a", "b"], [0.5, -2.0]).to_lora(rank=2)
    assert cut.rank == 2 and 0 < max(cut.error.values()) < 1


def test_a_blend_of_one_is_that_adapter():
    model = two(LoRA(r=3), IA3())
    one = next(deltaw.adapters(model))
    want, got = dict(one.merge().changed()), dict(deltaw.blend(model, "a").merge().changed())
    assert all(torch.equal(got[k], want[k]) for k in want)


def test_a_blend_of_tied_ends():
    """One adapter ties both ends of a tied weight, the other has one end: together they are two different weights."""
    ids = torch.arange(12).reshape(3, 4)
    for targets, untied in ((["table", "head"], False), (["head"], True)):
        model = settle(Tied(), torch.float64)
        push(deltaw.attach(model, Plan(LoRA(r=2), targets=["table", "head"]), "a"))
        push(deltaw.attach(model, Plan(LoRA(r=3), targets=targets), "b"))
        with deltaw.activate(model, ["a", "b"]):
            y = model(ids)
        merged = deltaw.blend(model, ["a", "b"]).merge(probe=ids)
        assert bool(merged.certificate.untied) == untied and gap(merged.model()(ids), y) < 1e-12


def test_a_blend_of_whole_modules():
    model = tiny()
    for name in "ab":
        push(deltaw.attach(model, Plan(Full(), targets=["sq"]), name))
    with deltaw.activate(model, ["a", "b"], [0.25, 0.75]):
        y = model(X)
    blend = deltaw.blend(model, ["a", "b"], [0.25, 0.75])
    assert gap(blend.merge(probe=X).model()(X), y) < 1e-12
    with pytest.raises(NotMergeable, match="trains whole modules"):
        blend.to_lora(rank=2)


def test_what_cannot_be_blended_says_so():
    model = tiny()
    push(deltaw.attach(model, Plan(ReFT(r=2)), "h"))
    with pytest.raises(NotMergeable, match="stream"):
        deltaw.blend(model, ["h"]).merge()
    for names, weights in ((["h", "h"], None), ([], None), (["h"], [1.0, 2.0])):
        with pytest.raises(SpecError, match="one weight each"):
            deltaw.blend(model, names, weights)
    with pytest.raises(SpecError, match="no adapter 'x'"):
        deltaw.blend(model, ["x"])


def test_channels_are_no_stream():
    model = matrix.capability.Picture()
    model = settle(model, torch.float64)
    model.config = type("C", (), {"hidden_size": 24})()
    deltaw.attach(model, Plan(ReFT(r=2), targets=["blocks.0"]))
    with pytest.raises(ShapeError, match="last axis"):
        model(matrix.capability.inputs(model))


def test_a_router_of_another_width_is_refused():
    method = deltaw.testing.instances(METHODS["xlora"])[0]
    with pytest.raises(ShapeError, match="16 wide"):
        Case(replace(method, hidden_size=8)).attach(model := tiny())
        model(X)


def test_a_wrapper_keeps_or_refuses_what_moves_the_bias():
    """Asking for the new weight only, it would lose half of such a method without a word."""

    def weight(self, W, p):
        return LoRA.weight(self, W, p)

    def layer(self, L, p):
        move = p.B[:, 0] + p.c
        return deltaw.ops.Affine(self.weight(L.op, p), move if L.bias is None else L.bias + move)

    def params(self, m, n):
        return {**LoRA.params(self, m, n), "c": Param((m,))}

    more = {"__module__": LoRA.__module__, "weight": weight, "layer": layer, "params": params}
    both = type("Both", (LoRA,), more)(r=2)
    for wrapper in (DoRA(both), METHODS["drop"](both)):
        cell = cells.attempt(lambda wrapper=wrapper: composition.prove(composition.Mix(wrapper)))
        assert cell.works or cell.error == "SpecError", cell


def test_an_init_leaves_shared_factors_alone():
    """What one site sets, the next one would overwrite."""

    def params(self, m, n):
        return {k: replace(p, scope="model") for k, p in LoRA.params(self, m, n).items()}

    shared = type("Shared", (LoRA,), {"__module__": LoRA.__module__, "params": params})(r=2)
    with pytest.raises(SpecError, match="shared by all sites"):
        deltaw.attach(tiny(), Plan(shared, init="pissa"))
