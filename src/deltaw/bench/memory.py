"""Memory of a training step: bytes kept for the backward pass, counted, and the peak of a process of its own.

Counted: every storage that autograd is handed to save (torch.autograd.graph.saved_tensors_hooks), once each and whole,
without the storages of parameters and buffers. What a function keeps outside autograd's sight is not seen here; the
peak resident size sees everything, and also the allocator, the optimiser's state and temporaries.
"""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

from ..train.progress import Progress
from .child import in_child
from .contender import FULL, Contender, contenders, ratios_of
from .count import saved_bytes
from .peak import peak_of
from .record import group
from .setting import Setting
from .subject import hidden, load
from .work import forward_backward, update

WHAT = (
    "bytes saved for the backward pass (exact, counted by hooks, parameters excluded), and the peak resident size of a child "
    "process that makes three training steps, in whole and above what it held before the first"
)


def measure(setting: Setting, progress: Progress) -> list[dict[str, Any]]:
    out = []
    for dtype in setting.dtypes:
        subject = load(setting, dtype)
        found = contenders(setting, subject, progress)
        counted: dict[str, list[float]] = {}
        progress.begin(len(found), what=f"saved bytes {dtype}")
        for k, (name, c) in enumerate(found.items()):
            x = subject.x.detach().requires_grad_()
            counted[name] = [float(saved_bytes(c.model, lambda c=c, x=x: hidden(c.model, x)))]  # type: ignore[misc]
            progress.step(k + 1)
        progress.end()
        pairs = ratios_of(found)
        out.append(group(f"{dtype}: saved for backward", counted, pairs, "bytes"))
        asked = {name: (c.who, c.method) for name, c in found.items()}
        del subject, found
        gc.collect()
        peaks: dict[str, list[dict[str, Any]]] = {name: [] for name in asked}
        progress.begin(setting.repeats * len(asked), what=f"peak of a process {dtype}")
        for k in range(setting.repeats):  # by rounds, as times are
            for j, name in enumerate(asked):
                alone = replace(setting, dtypes=(dtype,))
                peaks[name].append(in_child("memory", {"setting": alone.to_dict(), "name": name}))
                progress.step(k * len(asked) + j + 1)
        progress.end()
        for title, part in (("peak resident size", "peak"), ("peak above the loaded model", "added")):
            out.append(
                group(f"{dtype}: {title}", {n: [float(p[part]) for p in ps] for n, ps in peaks.items()}, pairs, "bytes")
            )
    return out


def child(setting: Setting, name: str) -> dict[str, Any]:
    """In a process of its own: the peak of three whole steps of one candidate."""
    c, subject = only(setting, name)

    def step() -> None:
        forward_backward(c, subject)
        if c.optimizer is not None:
            update(c)

    return peak_of(setting, step)


def only(setting: Setting, name: str) -> tuple[Contender, Any]:
    """The one candidate of this name, with nothing else built beside it."""
    who, _, word = name.partition(" ")
    alone = replace(
        setting, methods=(word,) if word else (), against=("peft",) if who == "peft" else (), full=name == FULL
    )
    subject = load(alone, setting.dtypes[0])
    found = contenders(alone, subject, Progress())[name]
    return found, subject
