"""The scripts about ranks, bases and click models: their pages from records, partial ones too; records that do not fit are refused."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


def script(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # bases imports ranks
    spec.loader.exec_module(module)
    return module


def entry(losses, group="budget", ranks=None):
    runs = [
        {"rate": 0.01, "seed": s, "test": {"loss": v, "accuracy": 0.5}, "ranks": ranks or {"model.layers.0.q_proj": 4, "model.layers.1.q_proj": 2}, "held": [8], "validation": v}
        for s, v in enumerate(losses, 1)
    ]  # fmt: skip
    return {"group": group, "config": {"method": {"key": "lora", "r": 4}}, "tuning": [], "runs": runs, "rate": 0.01, "at_the_end": False}


def record(**contenders):
    ranks = script("ranks")
    size = {**ranks.asdict(ranks.CPU)}
    return {"what": "ranks", "date": "2026-01-01", "quick": False, "model": "m", "size": size, "device": "cpu", "jobs": 1, "versions": {"torch": "2"},
            "machine": {"cpu_capability": "AVX2"}, "contenders": contenders}  # fmt: skip


def test_ranks_page_and_merging(tmp_path, monkeypatch):
    ranks = script("ranks")
    monkeypatch.setattr(ranks, "PAGE", tmp_path / "ranks.md")
    (tmp_path / "benchmarks").mkdir()
    a, b = tmp_path / "ranks-smollm2-2026-01-01.json", tmp_path / "other.json"
    unfinished = {"group": "budget", "config": {"method": {"key": "sora"}}, "tuning": [], "runs": []}
    a.write_text(json.dumps(record(lora=entry([0.5, 0.6, 0.7]), sora=unfinished)))
    ranks.report(tmp_path)
    assert "failed or diverged" in (tmp_path / "ranks.md").read_text()
    b.write_text(json.dumps(record(sora=entry([0.4, 0.5, 0.6]))))
    assert ranks.merged([a, b]) == a
    ranks.report(tmp_path)
    text = (tmp_path / "ranks.md").read_text()
    assert "| -0.1000 ± 0.0000 | yes |" in text and "<svg" in (tmp_path / "benchmarks" / "ranks.svg").read_text()
    other = record(sora=entry([0.4]))
    other["device"] = "cuda"
    b.write_text(json.dumps(other))
    with pytest.raises(SystemExit, match="device"):
        ranks.merged([a, b])


def test_bases_page(tmp_path, monkeypatch):
    bases = script("bases")
    monkeypatch.setattr(bases, "PAGE", tmp_path / "bases.md")
    bases.report(tmp_path)
    assert "No record yet" in (tmp_path / "bases.md").read_text()
    memory = {"layer_bytes": 100, "base_bytes": 200, "saved_bytes": 10, "trained_bytes": 5}
    start = {"weight_error": 0.1, "kl": 0.2, "perplexity": 20.0, "trained": 7}
    found = {
        "memory": [{"job": ["bf16"], **memory}, {"job": ["nf4"], **memory, "layer_bytes": 26}],
        "start": [{"job": ["qlora", 4], **start}, {"job": ["loftq", 4], "error": "it failed"}],
        "compressed": [{"job": ["none", 0.0, 0], "perplexity": 15.0, "parameters": 100}, {"job": ["svd", 0.2, 0], "perplexity": 99.0, "parameters": 80}],
    }  # fmt: skip
    size = script("ranks").asdict(script("ranks").CPU)
    (tmp_path / "bases-smollm2-2026-01-01.json").write_text(
        json.dumps({"size": size, "found": found, "device": "cpu", "jobs": 1, "versions": {"torch": "2"}, "date": "2026-01-01", "r": 16, "rates": []})
    )
    bases.report(tmp_path)
    text = (tmp_path / "bases.md").read_text()
    assert "take 0.260 of bfloat16's" in text and "| qlora | 4 | 0.1000" in text and "| svd | 20% | 80 | 99.0000 |" in text and "it failed" not in text


def test_a_base_whose_ladder_stopped_early_is_run_again():
    bases = script("bases")
    found = {"rate": 3e-3, "tuning": [{"rate": r} for r in (1e-3, 3e-3)]}
    assert not bases.inside(found) and not bases.ended(found)
    found["tuning"].append({"rate": 1e-2})
    assert bases.inside(found) and bases.ended(found)
    at_the_end = {"rate": 1e-3, "tuning": [{"rate": 1e-3 / 2**k} for k in range(bases.words.RUNGS)]}
    assert not bases.inside(at_the_end) and bases.ended(at_the_end) and bases.ended({"kl": 0.1})


def test_a_click_model_is_compressed(tmp_path, monkeypatch):
    clicks = script("clicks")
    monkeypatch.setattr(clicks, "KS", (4,))
    monkeypatch.setattr(clicks, "RATIOS", (0.5,))
    rows = clicks.one(0, quick=True)
    assert len(rows) == 6 and all(0.5 < r["tuned"]["auc"] <= 1 for r in rows)
    dense = rows[0]["tuned"]["parameters"]
    assert all(r["tuned"]["parameters"] < dense for r in rows[1:])
    machine = {"what": "clicks", "date": "2026-01-01", "seeds": [0, 1], "rows": rows + [{**r, "seed": 1} for r in rows]}
    (tmp_path / "clicks-2026-01-01.json").write_text(json.dumps(machine))
    clicks.report(tmp_path, tmp_path / "clicks.md")
    assert "| table | afm | k = 4 |" in (tmp_path / "clicks.md").read_text()
