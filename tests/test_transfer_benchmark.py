"""The benchmark of transfer over widths: it runs, and reads the right numbers out of a record."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "benchmarks" / "transfer.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("transfer_benchmark", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record(losses):
    """losses[way][width] = [loss at rate 1, 2, 4 of seed 0; of seed 1]."""
    rows = [
        {"way": way, "width": w, "rate": rate, "seed": seed, "loss": v}
        for way, by in losses.items() for w, seeds in by.items() for seed, line in enumerate(seeds) for rate, v in zip((1.0, 2.0, 4.0), line)
    ]  # fmt: skip
    return {"widths": [8, 16], "rates": [1.0, 2.0, 4.0], "seeds": [0, 1], "rows": rows}


def test_the_shift_and_what_it_costs(script):
    found = record({
        "standard": {8: [[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]], 16: [[1.0, 2.0, 5.0], [2.0, 1.5, math.nan]]},
        "mup": {8: [[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]], 16: [[2.0, 1.0, 1.25], [2.0, 1.0, 0.5]]},
    })  # fmt: skip
    rows = {(r["way"], r["width"]): r for r in script.summary(found)}
    wide = rows["standard", 16]
    assert wide["rate"] == 1.0 and wide["loss"] == 1.5 and wide["shift"] == -2 and wide["lost"] == math.inf
    assert wide["shifts"] == [-2, -1] and wide["losts"] == [4.0, math.inf] and wide["edge"]
    assert rows["mup", 16]["shift"] == 0 and rows["mup", 16]["lost"] == 0 and rows["mup", 16]["shifts"] == [-1, 0]
    assert rows["standard", 8]["shift"] == 0 and rows["standard", 8]["lost"] == 0


def test_text_is_split_and_pieces_are_the_same(script):
    train, held = script.text()
    assert len(train) > 19 * len(held) - 40 > 300_000 and train.max() < 256
    assert (script.pieces(train, 4, 3) == script.pieces(train, 4, 3)).all()
    rates = [script.rate_at(k, 50) for k in range(50)]
    assert rates[4] == 1.0 == max(rates) and rates[0] == 0.2 and 0 < rates[-1] < 0.05


def test_quick(script, tmp_path):
    pytest.importorskip("transformers")
    order = [sys.executable, str(FILE), "run", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(order, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = tmp_path.glob("transfer-*.json")
    found = json.loads(path.read_text())
    assert found["quick"] and len(found["rows"]) == 2 * 2 * 2
    by = {(r["way"], r["width"], r["rate"]): r["loss"] for r in found["rows"]}
    for rate in found["rates"]:  # at the base muP is the standard parametrisation
        assert by["mup", 16, rate] == by["standard", 16, rate] and by["mup", 32, rate] != by["standard", 32, rate]
    (tmp_path / "docs").mkdir()
    script.report(tmp_path, tmp_path / "docs" / "transfer.md")
    page = (tmp_path / "docs" / "transfer.md").read_text()
    assert "| muP | 32 |" in page and (tmp_path / "docs" / "benchmarks" / "transfer.svg").read_text().count('class="curve"') == 4
