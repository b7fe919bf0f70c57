"""The harness of recorded training runs: it is deterministic, climbs its ladder, compares seed by seed, and writes its page."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest
import torch

from deltaw.bench.ladder import next_rung

pytest.importorskip("transformers")
FILE = Path(__file__).parents[1] / "benchmarks" / "dynamics.py"
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("dynamics", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    module.MODEL = {**module.MODEL, **SMALL}
    return module


def run(script, task, name, seed=1, rate=1e-2):
    size = script.QUICK[task]
    config = script.settled(script.CONTENDERS[task][name], task, size)
    return script.one(task, config, size, script.QUICK["base"], rate, seed)


@pytest.mark.parametrize("name", ["adamw", "galore", "lora", "sltrain", "sst", "trp", "dlrt", "lowrank_refactor"])
def test_a_run_depends_on_its_seed_and_on_nothing_else(script, name):
    first = run(script, "pretrain", name)
    torch.manual_seed(99)
    again, other = run(script, "pretrain", name), run(script, "pretrain", name, seed=2)
    for word in ("test", "validation", "curve", "state_bytes", "trained"):
        assert first[word] == again[word], word
    assert first["test"] != other["test"] and first["steps"] == 4
    assert first["state_bytes"] > 0 and first["trained"] > 0 and first["step_cpu_seconds"] > 0


def test_the_base_of_finetune_is_made_once_and_found_again(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "CACHE", tmp_path)
    size = script.QUICK["base"]
    made = script.base(size)
    (file,) = tmp_path.glob("dynamics-base-*.safetensors")
    monkeypatch.setattr(script, "train", lambda *a: pytest.fail("trained again"))
    assert script.weights_hash(script.base(size)) == script.weights_hash(made)
    assert script.base_key(size) in file.name and script.base_key(script.SIZES["base"]) not in file.name


@pytest.mark.parametrize("name", ["lora", "pissa", "lora_plus"])
def test_adapters_are_trained_on_the_base(script, tmp_path_factory, monkeypatch, name):
    monkeypatch.setattr(script, "CACHE", tmp_path_factory.getbasetemp())
    found = run(script, "finetune", name)
    assert found["test"] < 2 * math.log(256) and found["trained"] < 20_000


def test_parts_are_disjoint_and_fixed(script):
    for task in ("pretrain", "finetune"):
        text, found = script.documents(task), script.parts(task)
        assert sum(len(p) for p in found.values()) == sum(len(d) + 1 for d in text.values())
        assert min(len(found["validation"]), len(found["test"])) > 40_000
    block = bytes(script.parts("pretrain")["test"][: script.BLOCK].tolist())
    whole = b"".join(d + b"\0" for d in script.documents("pretrain").values())
    assert whole[9 * script.BLOCK : 10 * script.BLOCK] == block


def test_every_contender_is_known_to_a_question_or_is_what_others_are_compared_with(script):
    for task, questions in script.QUESTIONS.items():
        asked = {name for pairs in questions.values() for pair in pairs for name in pair}
        assert asked == set(script.CONTENDERS[task])


def test_what_the_library_lacks_is_said(script):
    assert script.missing({"kind": "whole", "update": "no_such_rule"}) == ["update no_such_rule"]
    plan = {"method": "lora", "init": {"key": "no_init"}, "rules": ["no_rule"]}
    assert script.missing({"kind": "adapter", "plan": plan}) == ["init no_init", "rule no_rule"]
    assert script.missing(script.CONTENDERS["pretrain"]["sst"]) == []


def test_the_ladder_grows_where_the_best_is(script):
    def curve(best):
        return lambda rate: {"rate": rate, "validation": abs(math.log(rate / best))}

    runs, best = script.climb(curve(3e-3), (1e-3, 3.16e-3, 1e-2), 5)
    assert len(runs) == 3 and best["rate"] == 3.16e-3
    runs, best = script.climb(curve(0.03), (1e-3, 3.16e-3, 1e-2), 8)
    assert [r["rate"] for r in runs] == [1e-3, 3.16e-3, 1e-2, 0.0316, 0.0999] and best["rate"] == 0.0316
    runs, best = script.climb(curve(1e-9), (1e-3, 3.16e-3, 1e-2), 5)
    assert len(runs) == 5 and best["rate"] == min(r["rate"] for r in runs)
    runs, best = script.climb(curve(1e9), (1e-3,), 1)
    assert len(runs) == 1 and best["rate"] == 1e-3


def test_a_ladder_of_diverged_runs_goes_down():
    assert next_rung({1e-3: None, 1e-2: math.nan}, 8) == 3.16e-4
    assert next_rung({1e-3: 1.0, 1e-2: None}, 8) == 3.16e-4
    assert next_rung({3.16e-4: 2.0, 1e-3: 1.0, 1e-2: math.inf}, 8) is None


def test_intervals_are_students(script):
    mean, half = script.interval([1.0, 2.0, 3.0])
    assert mean == 2.0 and half == pytest.approx(4.303 * 1.0 / 3**0.5)
    assert script.interval([1.0])[1] == math.inf
    assert script.against([1.0, 2.0, 3.0], [1.5, 2.6, 3.4])[2] == "shows"
    assert script.against([1.5, 2.6, 3.4], [1.0, 2.0, 3.0])[2].startswith("does not show")
    assert script.against([1.0, 2.0, 3.0], [1.5, 1.5, 3.0])[2] == "not decided"


def fake(script, task, losses):
    """A record whose contenders have these test losses."""
    size = script.SIZES[task]

    def contender(name, values):
        runs = [
            {"rate": 1e-3, "seed": k, "validation": v, "test": v, "curve": [(0, 5.5), (60, None if v is None else v + 1), (240, v)], "steps": 240,
             "step_seconds": 0.2, "step_cpu_seconds": 0.1, "state_bytes": 1000, "trained": 10}
            for k, v in enumerate(values, 1)
        ]  # fmt: skip
        config = script.settled(script.CONTENDERS[task][name], task, size)
        return {"config": config, "tuning": runs[:1], "rate": 1e-3, "at_the_end": name == "lora", "runs": runs}

    return {
        "what": "dynamics", "task": task, "date": "2026-01-01", "quick": False, "seeds": [1, 2, 3], "model": script.MODEL, "base": None,
        "size": script.dataclasses.asdict(size), "text": "abc", "bytes": {"train": 1}, "machine": {"cpu": "a cpu"}, "threads": 1,
        "sessions": [{"date": "2026-01-01", "jobs": 1, "load_before": 0.1, "load_after": 0.2, "contenders": list(losses)}],
        "versions": {"torch": "2"}, "skipped": {"fira": "not in this version: update fira"},
        "contenders": {n: contender(n, v) for n, v in losses.items()},
    }  # fmt: skip


LOSSES = {"adamw": [2.0, 2.1, 2.2], "galore": [1.9, 2.0, 2.1], "lora": [2.5, 2.6, 2.72], "sst": [None, 2.0, 2.0]}


def test_the_page_has_a_table_per_question_and_a_picture(script, tmp_path):
    (tmp_path / "dynamics-pretrain-2026-01-01.json").write_text(json.dumps(fake(script, "pretrain", LOSSES)))
    page = tmp_path / "docs" / "dynamics.md"
    page.parent.mkdir()
    script.report(tmp_path, page)
    text = page.read_text()
    assert "| galore against adamw | -0.1000 ± 0.0000 | -0.1000 ± 0.0000 | shows |" in text
    assert "| sst against lora | | | sst diverged |" in text and "fira (not in this version: update fira)" in text
    assert "0.001 (end of the ladder: a better one may follow)" in text and "all weights, galore(r=32, every=40)" in text
    assert "## finetune" in text and "No record yet" in text
    svg = (page.parent / "benchmarks" / "dynamics-pretrain.svg").read_text()
    assert svg.count("<polyline") == 3 and "galore" in svg  # not the one that diverged


def test_records_are_merged_if_they_differ_in_contenders_only(script, tmp_path):
    paths = []
    for name, part in (("a", {"adamw": LOSSES["adamw"]}), ("b", {"adamw": [9.0] * 3, "galore": LOSSES["galore"]})):
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps(fake(script, "pretrain", part)))
    one = json.loads(script.merged(paths, tmp_path).read_text())
    assert set(one["contenders"]) == {"adamw", "galore"} and one["contenders"]["adamw"]["runs"][0]["test"] == 2.0
    assert [m["contenders"] for m in one["sessions"]] == [["adamw"], ["adamw", "galore"]]
    assert one["skipped"] == {"fira": "not in this version: update fira"}
    other = fake(script, "pretrain", {"lora": LOSSES["lora"]})
    paths[1].write_text(json.dumps({**other, "text": "another"}))
    with pytest.raises(SystemExit, match="differs from .* in text"):
        script.merged(paths, tmp_path)


def test_run_writes_a_record_after_every_contender(script, tmp_path, monkeypatch):
    asked = []

    def process(order, **kw):  # what a child would say
        asked.append(order[4])
        done = script.subprocess.CompletedProcess(order, 0 if order[4] == "adamw" else 1, "", "ValueError: no")
        if order[4] == "adamw":
            done.stdout = "noise\n" + json.dumps(fake(script, "pretrain", LOSSES)["contenders"]["adamw"])
        return done

    monkeypatch.setattr(script, "machine", dict)  # it asks a process, too
    monkeypatch.setattr(script.subprocess, "run", process)
    monkeypatch.setitem(script.CONTENDERS["pretrain"], "unknown", {"kind": "whole", "update": "no_such"})
    path = script.measure("pretrain", ["adamw", "lora", "unknown"], True, 2, 1, tmp_path)
    record = json.loads(path.read_text())
    assert asked == ["adamw", "lora"] and list(record["contenders"]) == ["adamw"] and record["quick"]
    assert record["skipped"] == {"lora": "failed: ValueError: no", "unknown": "not in this version: update no_such"}
    script.measure("pretrain", ["adamw", "lora"], True, 2, 1, tmp_path)  # goes on: what is there is not run again
    assert asked == ["adamw", "lora", "lora"] and len(json.loads(path.read_text())["sessions"]) == 2
    with pytest.raises(SystemExit, match="another seeds, size"):
        script.measure("pretrain", ["adamw"], True, 3, 1, tmp_path)


def test_a_child_runs_everything_of_one_contender(script, capsys):
    threads = torch.get_num_threads()
    try:
        script.child("pretrain", "adamw", True, 2)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(threads)
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert [r["seed"] for r in found["runs"]] == [1, 2] and [r["seed"] for r in found["tuning"]] == [0]
    assert found["at_the_end"] and found["rate"] == 1e-3 and found["config"]["update"]["key"] == "adamw"
