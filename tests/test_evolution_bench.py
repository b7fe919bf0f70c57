"""The comparison of searches with gradients: it runs, chooses on validation scores only, and its table says what was run."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "benchmarks" / "evolution.py"


@pytest.fixture(scope="module")
def script():
    pytest.importorskip("sklearn")
    pytest.importorskip("cma")
    spec = importlib.util.spec_from_file_location("evolution", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_a_quick_run_and_its_table(script, tmp_path, capsys):
    path = script.measure(["loss", "reward"], list(script.CONTENDERS), 2, True, tmp_path)
    record = json.loads(path.read_text())
    starts = set()
    for signal in script.SIGNALS:
        for name in script.CONTENDERS:
            runs = record["runs"][signal][name]
            assert [r["seed"] for r in runs] == [0, 1] and {r["rate"] for r in runs} == {record["rates"][name][0]}
            starts |= {r["curve"][0]["test"]["loss"] for r in runs}
            assert [c["mark"] for c in runs[0]["curve"]] == [0, *record["marks"][: 1 if name == "lora" else 2]]
            assert all(c["rows"] >= c["mark"] for c in runs[0]["curve"])
    assert len(starts) == 2  # one warm start per seed, whatever comes after it
    losses = [c["loss"]["mean"] for c in record["best"]["loss"]["lora"]["curve"]]
    assert losses[-1] < losses[0]
    script.main(["report", str(path)])
    text = capsys.readouterr().out
    assert text.count("| eggroll |") == 2 and "| reward | rate | 0 | 2,048 | 8,192 | seconds |" in text and "±" in text


def test_the_rate_is_chosen_on_validation_scores(script):
    def run(rate, seed, validation, test):
        return {
            "rate": rate, "seed": seed,
            "curve": [{"mark": 1, "seconds": 1.0, "validation": {"loss": validation, "accuracy": validation}, "test": {"loss": test, "accuracy": test}}],
        }  # fmt: skip

    runs = [run(0.1, 0, 1.0, 9.0), run(0.1, 1, 2.0, 7.0), run(0.2, 0, 3.0, 0.0), run(0.2, 1, 4.0, 0.0)]
    found = script.summary(runs, "loss")
    assert found["rate"] == 0.1 and found["curve"][0]["loss"] == {
        "mean": 8.0,
        "half": pytest.approx(12.706 * 2**0.5 / 2**0.5),
    }
    assert script.summary(runs, "reward")["rate"] == 0.2
    assert script.half_width([1.0]) is None


def test_what_there_is_not_is_named(script):
    with pytest.raises(SystemExit, match="unknown contenders: nothing"):
        script.main(["run", "--contenders", "nothing"])
