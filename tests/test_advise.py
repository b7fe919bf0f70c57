"""deltaw advise: what it rests on, and that the model is left alone."""

from __future__ import annotations

import json
import math
import shlex

import pytest

pytest.importorskip("transformers")

from train_kit import jsonl, pairs, tiny_home, tiny_model, tiny_tokenizer

from deltaw import Plan
from deltaw.cli import main
from deltaw.errors import SpecError
from deltaw.methods import LoRA
from deltaw.study import advise as module
from deltaw.study.advise import Data, advise, ladder, prepared
from deltaw.testing.laws.base import base_state, digest
from deltaw.train import Recipe


def value(found, what):
    return next(e["value"] for e in found.evidence if e["what"] == what)


def test_without_data_the_rate_is_carried():
    """2e-4 at s r n = 16 x 4096, to the model's 32 and alpha = 32."""
    found = advise(tiny_model())
    assert (found.rank, found.alpha, found.probe, found.before) == (16, 32.0, [], None)
    assert math.isclose(found.lr, 2e-4 * (16 * 4096 / (32 * 32)) ** 0.5) and value(found, "width") == 32
    assert found.method == {"key": "lora", "r": 16, "alpha": 32.0}
    assert advise(tiny_model(), rank=4).lr == found.lr, "with a fixed alpha the rate holds for all ranks"
    assert math.isclose(advise(tiny_model(), rank=4, alpha=8.0).lr, 2 * found.lr)
    rooted = advise(tiny_model(), "rslora", rank=4)
    assert math.isclose(rooted.lr, found.lr / 2**0.5) and "usual" in [e["because"] for e in rooted.evidence]
    assert found.overrides == [
        "plan.method=lora",
        "plan.method.r=16",
        "plan.method.alpha=32",
        f"train.lr={found.lr:.2g}",
    ]


def test_methods_without_a_law_say_so():
    found = advise(tiny_model(), "ia3")
    assert found.rank is None and found.alpha is None and "no law" in found.evidence[-1]["because"]
    whole = advise(tiny_model(), "full", targets=["q_proj"])
    assert math.isclose(whole.lr, 2e-5 * 4096 / 32)
    assert advise(tiny_model(), {"key": "dora"}, rank=4).rank == 4
    with pytest.raises(SpecError, match="no rank"):
        advise(tiny_model(), "ia3", rank=4)
    with pytest.raises(SpecError, match="no alpha"):
        advise(tiny_model(), "vera", alpha=4.0)


@pytest.fixture(scope="module")
def probed():
    model = tiny_model()
    before = digest(base_state(model)), [p.requires_grad for p in model.parameters()], model.training
    data = prepared(pairs(24), tiny_tokenizer())
    found = advise(model, LoRA(), targets=["q_proj", "down_proj"], data=data, steps=4)
    assert (digest(base_state(model)), [p.requires_grad for p in model.parameters()], model.training) == before
    return model, data, found


def test_the_probe_chooses(probed):
    model, data, found = probed
    assert len(data.held) == 6 and len(data.train) == 18
    best = min(found.probe, key=lambda row: row["loss"])
    assert found.lr == best["lr"] and best["loss"] < found.before and len(found.probe) in (3, 4, 5)
    ratios = [b["lr"] / a["lr"] for a, b in zip(found.probe, found.probe[1:])]
    assert all(math.isclose(r, 4.0) for r in ratios)
    again = advise(model, LoRA(), targets=["q_proj", "down_proj"], data=data, steps=4)
    assert again == found, "the same probe twice"


def test_the_rank_holds_what_the_data_says(probed):
    _, data, found = probed
    bits = data.labels * found.before / math.log(2)
    sizes = {4: 4 * (32 + 32 + 48 + 32) * 2}  # two layers, two sites each
    assert found.rank == 4 and 2 * sizes[4] >= bits
    large = Data(data.train, data.held, 3 * 2 * sizes[4], data.pad)
    bigger = advise(tiny_model(), LoRA(), targets=["q_proj", "down_proj"], data=large, steps=1)
    need = large.labels * bigger.before / math.log(2) / (2 * sizes[4] / 4)
    assert bigger.rank == min((r for r in (4, 8, 16, 32) if r >= need), default=32) > 4


def test_the_ladder_goes_on_at_its_end(monkeypatch):
    def run(best):
        monkeypatch.setattr(module, "_probe", lambda model, plan, data, lr, *rest: abs(math.log(lr / best, 4)))
        return [round(math.log(row["lr"], 4)) for row in ladder(None, None, None, 1.0, 1, 1, 0, lambda line: None)]

    assert (
        run(1.0) == [-1, 0, 1]
        and run(4.0) == [-1, 0, 1, 2]
        and run(4.0**5) == [-1, 0, 1, 2, 3]
        and run(4.0**-2) == [-3, -2, -1, 0, 1]
    )


def test_too_few_rows_and_a_rate_that_breaks(probed):
    model, data, _ = probed
    with pytest.raises(SpecError, match="at least 8 rows"):
        prepared(pairs(5), tiny_tokenizer())
    loss = module._probe(model, Plan(LoRA(2), targets=["q_proj"]), data, math.inf, 2, 4, 0)
    assert loss == math.inf and all(p.isfinite().all() for p in model.parameters())


def test_the_command(tmp_path, capfd):
    tiny_home(tmp_path / "base")
    rows = jsonl(tmp_path / "rows.jsonl", pairs(16))
    words = ["advise", str(tmp_path / "base"), "--method", "lora", "--rank", "2", "--data", rows, "--steps", "2"]
    capfd.readouterr()
    assert main([*words, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["rank"] == 2 and len(found["probe"]) >= 3 and found["overrides"][1] == "plan.method.r=2"
    assert main(words) == 0
    out = capfd.readouterr().out
    assert "carried rate" in out and "probe: rate" in out and "plan.method.r=2" in out
    recipe = Recipe.of({"plan": "lora"}, shlex.split(out.splitlines()[-1])[2:])  # what it says at the end is a command
    assert recipe.data.path == rows and recipe.model == str(tmp_path / "base") and recipe.the_plan().method.r == 2
    assert main(["advise", str(tmp_path / "base"), "--targets", "q_proj,down_proj"]) == 0
    recipe = Recipe.of({"plan": "lora"}, shlex.split(capfd.readouterr().out.splitlines()[-1])[2:])
    assert recipe.the_plan().targets == ("q_proj", "down_proj")
    assert main(["advise", str(tmp_path / "base"), "--method", "lorra"]) == 2
