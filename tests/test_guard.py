"""Operator calls and saved bytes of a training step, exactly as recorded: a forward that grows is seen without a clock.

guard.json beside this file holds the numbers. After a change that is meant to move them:

    python tests/test_guard.py --write
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from deltaw.bench.contender import Contender, contenders, pair
from deltaw.bench.count import operators, saved_bytes
from deltaw.bench.setting import Setting
from deltaw.bench.subject import hidden, load
from deltaw.bench.work import forward_backward
from deltaw.errors import DeltawError
from deltaw.spec import METHODS
from deltaw.train.progress import Progress

FILE = Path(__file__).with_name("guard.json")
DTYPES = ("float32", "bfloat16")
BASE = torch.__version__.partition("+")[0]
# the methods that act on weights alone (some ask for a signal of the whole model); drop is lora+drop here
APART = ("drop", "trainable_tokens", "xlora", "poly", "alora", "at")
FITTED = ("road:group_size=32", "adamss:R=16", "block_lora:k=2", "c3a:b=16", "flylora:k=2", "nora:q=2", "smora:k=2", "vb_lora:b=16", "waveft:k=64")  # at 64 x 64
WORDS = [k for k in METHODS if METHODS[k].sites == "weight" and k not in {*APART, *(w.partition(":")[0] for w in FITTED)}]
WORDS += ["lora+drop", *FITTED]


def setting(dtype: str) -> Setting:
    return Setting(model="tiny", dtypes=(dtype,), methods=(), batch="2x32", rank=4, full=True)


def count(c: Contender, subject: Any) -> dict[str, Any]:
    """Of the second step: the first may fill caches."""
    forward_backward(c, subject)
    for p in c.trained:
        p.grad = None
    ops = operators(lambda: forward_backward(c, subject))
    x = subject.x.detach().requires_grad_()
    return {
        "saved_bytes": saved_bytes(c.model, lambda: hidden(c.model, x)),
        "calls": sum(ops.values()),
        "operators": ops,
    }


def counts(dtype: str, words: list[str]) -> dict[str, dict[str, Any]]:
    """The floor and full training as well, where no words are given."""
    chosen = setting(dtype)
    subject = load(chosen, dtype)
    if not words:
        return {name: count(c, subject) for name, c in contenders(chosen, subject, Progress()).items()}
    return {w: count(c, subject) for w in words for c in pair(chosen, subject, w, Progress())}


def recorded() -> dict:
    if not FILE.is_file():
        pytest.skip(f"{FILE.name} is not there: python tests/test_guard.py --write")
    found = json.loads(FILE.read_text("utf-8"))
    if found["torch"] != BASE:
        pytest.skip(f"recorded with torch {found['torch']}, this is {BASE}: other versions call other operators")
    return found["counts"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("word", ["", *WORDS])
def test_a_step_calls_and_saves_what_is_recorded(word, dtype):
    want = recorded()[dtype]
    torch.manual_seed(0)
    for name, got in counts(dtype, [word] if word else []).items():
        assert name in want, f"{name} is not in {FILE.name}: python tests/test_guard.py --write"
        moved = {
            k: (want[name]["operators"].get(k, 0), got["operators"].get(k, 0))
            for k in {*want[name]["operators"], *got["operators"]}
            if want[name]["operators"].get(k, 0) != got["operators"].get(k, 0)
        }
        assert not moved, (
            f"{name}, {dtype}: operator: (recorded, now) {moved}; if meant: python tests/test_guard.py --write"
        )
        assert got["saved_bytes"] == want[name]["saved_bytes"], (name, dtype)


def test_every_method_is_recorded():
    want = recorded()
    assert all(set(want[d]) == {"floor", "full", *WORDS} for d in DTYPES)


def test_counting_sees_a_change():
    """One more product, and one more tensor kept."""
    layer = torch.nn.Linear(8, 8)
    x = torch.randn(4, 8, requires_grad=True)
    once, twice = operators(lambda: layer(x).sum().backward()), operators(lambda: layer(layer(x)).sum().backward())
    assert twice["addmm"] == once["addmm"] + 1
    assert saved_bytes(layer, lambda: layer(x)) == x.numel() * 4
    assert saved_bytes(layer, lambda: layer(layer(x))) == 2 * x.numel() * 4  # weights are the model's own
    assert saved_bytes(layer, lambda: layer(x) + layer(x)) == x.numel() * 4  # one storage counts once


def test_a_storage_counts_whole_and_once():
    wide = torch.randn(4, 16, requires_grad=True)
    own = torch.nn.Module()
    assert saved_bytes(own, lambda: wide[:, :8].exp() * wide[:, 8:]) == (wide.numel() + 4 * 8) * 4  # all of x, e^x


def write() -> None:
    made: dict[str, dict[str, Any]] = {}
    for dtype in DTYPES:
        made[dtype] = {}
        for words in ([], *([w] for w in WORDS)):
            torch.manual_seed(0)
            try:
                made[dtype] |= counts(dtype, list(words))
            except DeltawError as error:
                sys.stderr.write(f"{words}: {error}\n")
    lines = []  # one line a method: a change of numbers reads well in a diff
    for dtype, found in made.items():
        rows = [f"   {json.dumps(name)}: {json.dumps(facts)}" for name, facts in sorted(found.items())]
        lines.append(f'  "{dtype}": {{\n' + ",\n".join(rows) + "\n  }")
    text = f'{{\n "torch": "{BASE}",\n "counts": {{\n' + ",\n".join(lines) + "\n }\n}\n"
    part = FILE.with_suffix(".part")
    part.write_text(text, "utf-8")
    os.replace(part, FILE)


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        raise SystemExit(f"usage: python {sys.argv[0]} --write")
    write()
