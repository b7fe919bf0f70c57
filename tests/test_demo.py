"""deltaw demo on a tiny model, its task, and the report's promise to need nothing and to escape everything."""

from __future__ import annotations

import importlib.util
import json
import sys
from html.parser import HTMLParser

import pytest

import deltaw.report as r
from deltaw.errors import MissingExtra

pytest.importorskip("transformers")
pytest.importorskip("yaml")
from train_kit import tiny_home  # noqa: E402

from deltaw.demo import run, task  # noqa: E402
from deltaw.demo.page import page  # noqa: E402
from deltaw.demo.run import recipe  # noqa: E402

NO_GYM = importlib.util.find_spec("reasoning_gym") is None
gym = pytest.mark.skipif(NO_GYM, reason="needs reasoning-gym")


class Reader(HTMLParser):
    """Tags, attributes and text of a page; fails where tags do not nest or something could be loaded."""

    def __init__(self, page: str):
        super().__init__()
        self.path: list[str] = []
        self.seen: list[str] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        assert not self.path, f"never closed: {self.path}"

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        for name, value in attrs:
            assert name not in ("src", "href", "srcset", "action", "style") and not name.startswith("on"), (tag, name)
            assert "://" not in (value or "") and "javascript:" not in (value or ""), (tag, name, value)
        self.path.append(tag)

    def handle_endtag(self, tag):
        assert self.path.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """One quick demo on a tiny model with random weights."""
    if NO_GYM:
        pytest.skip("needs reasoning-gym")
    home, out = tiny_home(tmp_path_factory.mktemp("home")), tmp_path_factory.mktemp("run")
    (out / "summary.json").write_text("stale")
    values = ["train.max_length=512", "plan.method.r=4"]
    summary = run(out, quick=True, model=str(home), overrides=values, progress=False)
    return out, summary


@gym
def test_questions_are_apart_and_stay_the_same():
    held = task.questions(20, 1000)
    asked = {row["prompt"] for row in held}
    again = task.questions(30, 1000, without=asked)
    assert len(asked) == 20 and held == task.questions(20, 1000)
    assert len(again) == 30 and not asked & {row["prompt"] for row in again}
    for row in held:
        words = row["prompt"].splitlines()[-1].removeprefix("Reverse this list of words: ").split(", ")
        assert 3 <= len(words) <= 6 and row["completion"].split(", ") == words[::-1]
    assert not [name for name in sys.modules if name.split(".")[0] == "reasoning_gym"]


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("deltaw.train.gym.GYM", "no_such_gym")
    with pytest.raises(MissingExtra, match="requirements-demo.txt"):
        task.questions(1, 0)


def test_a_run_leaves_everything(done):
    out, summary = done
    assert json.loads((out / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert {"accuracy_before", "accuracy_after", "train_seconds", "peak_rss_bytes", "adapter_dir"} <= set(summary)
    assert summary["quick"] and 0 <= summary["accuracy_after"] <= 1 and summary["peak_rss_bytes"] > 0
    assert json.loads((out / "certificate.json").read_text()) == summary["certificate"]
    assert summary["certificate"]["weights_changed"] > 0 and summary["certificate"]["max_error"] < 1e-4
    assert summary["adapter"]["mergeable"] and summary["adapter"]["exact_lora_rank"] == 4
    count = {
        name: len((out / name).read_text().splitlines()) for name in ("train.jsonl", "held-out.jsonl", "answers.jsonl")
    }
    assert count == {"train.jsonl": 24, "held-out.jsonl": 12, "answers.jsonl": 12}


@pytest.mark.parametrize("native, dtype", [(True, "bfloat16"), (False, "float32")])
def test_a_cpu_that_emulates_bfloat16_gets_float32(monkeypatch, tmp_path, native, dtype):
    monkeypatch.setattr(sys.modules["deltaw.demo.run"], "bfloat16_products", lambda device: native)
    assert recipe("a model", tmp_path, 0)["train"]["dtype"] == dtype


def test_peft_reads_the_adapter(done):
    pytest.importorskip("peft")
    peft = done[1]["peft"]
    assert done[1]["logit_change"] > 1e-3
    assert peft["missing_keys"] == peft["unexpected_keys"] == 0 and peft["max_logit_difference"] < 1e-4


def test_the_report_is_whole_and_needs_nothing(done):
    out, summary = done
    found = Reader((out / "report.html").read_text())
    assert found.seen.count("svg") == 3 and not {"script", "link", "img", "iframe", "object"} & set(found.seen)
    text = " ".join(found.text)
    assert "quick run" in text and "Merge certificate" in text and summary["adapter_dir"] in text


EVIL = "<script>alert('x')</script>\" onload=\"y & <b>"


def test_what_a_model_says_stays_text(done):
    out, summary = done
    answers = [{"prompt": EVIL, "completion": EVIL, "before": EVIL, "after": EVIL}]
    norms = {
        f"layers.0.{EVIL}": {"delta": 1.0, "relative": 0.5},
        "layers.1.q": {"delta": float("nan"), "relative": float("nan")},
    }
    history = [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": None},
        {"step": 3, "loss": float("inf")},
        {"step": 3, "eval_loss": 1.0},
    ]
    made = page(summary | {"model_name": EVIL, "versions": {EVIL: EVIL}}, answers, history, norms, EVIL)
    found = Reader(made)
    assert "script" not in found.seen and " ".join(found.text).count(EVIL) >= 8


def test_charts_stand_empty_input():
    for chart in (
        r.bars({}),
        r.lines({}),
        r.lines({"a": [(0, float("nan"))]}),
        r.heat({}),
        r.heat({"q": {0: (0.0, "")}}),
    ):
        Reader(chart)
    Reader(r.lines({"a": [(0, 0.0)], "b": [(5, 3.0), (6, 1.0)]}))
    assert r.tag("p", "<", r.tag("b", "&"), class_='x"y') == '<p class="x&quot;y">&lt;<b>&amp;</b></p>'
