"""The script about optimisers' cost: on a tiny model every rule keeps as many numbers as its formula says."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")
FILE = Path(__file__).parents[1] / "benchmarks" / "optimizers.py"


def test_state_is_what_the_formulas_state(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("optimizers", FILE)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "LENGTH", 8)
    record = json.loads(script.measure(list(script.RULES), True, tmp_path, "cpu").read_text())
    found = {k: v["state_floats"] for k, v in record["rules"].items()}
    assert found == {k: v["stated_floats"] for k, v in record["rules"].items()}
    assert found.keys() == {"adamw", *script.RULES} and found["galore"] < found["adamw"]
