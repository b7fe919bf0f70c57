"""Whole training steps under one loss and another: the ordinary cross-entropy of the model against ours on label rows."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ..train.progress import Progress
from .child import in_child
from .clock import rounds
from .contender import pair
from .peak import peak_of
from .record import group
from .setting import Setting
from .subject import load
from .work import backward, batch_of, mean_loss, step_of, update

WHAT = (
    "a whole training step (forward, loss, backward, optimiser) under two losses of the same batch, and the peak of a child process "
    "that makes three; ordinary: model(..., labels=...); label: deltaw.train.loss.label_loss"
)


def measure(setting: Setting, progress: Progress) -> list[dict[str, Any]]:
    out = []
    first, *others = setting.loss
    for dtype in setting.dtypes:
        subject = load(setting, dtype)
        batch = batch_of(setting, subject)
        work: dict[str, Callable[[], dict[str, float]]] = {}
        values = {}
        for word in setting.methods:
            for c in pair(setting, subject, word, progress):
                for loss in setting.loss:
                    work[f"{c.name}, {loss}"] = step_of(c, partial(backward, loss, c, subject, batch))
                    with torch.no_grad():
                        values[f"{c.name}, {loss}"] = (
                            float(mean_loss(loss, c.model, batch)) if loss != "hidden" else None
                        )
        times = rounds(setting, progress, f"loss {dtype}", work)
        whole = {name: [sum(x) for x in zip(*parts.values(), strict=True)] for name, parts in times.items()}
        pairs = [(n, f"{n.rpartition(', ')[0]}, {first}") for n in whole if n.rpartition(", ")[2] in others]
        out.append(group(f"{dtype}: whole step", whole, pairs, facts={"loss": values}))
        del subject, work
        gc.collect()
        peaks: dict[str, list[float]] = {name: [] for name in whole}
        added: dict[str, list[float]] = {name: [] for name in whole}
        count = 1 if setting.quick else min(setting.repeats, 3)
        progress.begin(count * len(whole), what=f"peak of a process {dtype}")
        alone = replace(setting, dtypes=(dtype,)).to_dict()
        for k in range(count):
            for j, name in enumerate(whole):
                found = in_child("loss", {"setting": alone, "name": name})
                peaks[name].append(found["peak"])
                added[name].append(found["added"])
                progress.step(k * len(whole) + j + 1)
        progress.end()
        out.append(group(f"{dtype}: peak resident size", peaks, pairs, "bytes"))
        out.append(group(f"{dtype}: peak above the loaded model", added, pairs, "bytes"))
    return out


def child(setting: Setting, name: str) -> dict[str, Any]:
    candidate, _, loss = name.rpartition(", ")
    who, _, word = candidate.partition(" ")
    subject = load(setting, setting.dtypes[0])
    batch = batch_of(setting, subject)
    found = pair(replace(setting, against=("peft",) if who == "peft" else ()), subject, word, Progress())
    c = next(c for c in found if c.name == candidate)
    del found

    def step() -> None:
        backward(loss, c, subject, batch)
        update(c)

    return peak_of(setting, step)
