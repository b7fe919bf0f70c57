"""What tuning the C allocator is worth: the same step in two processes that take turns, one tuned, one not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from ..train.host import rss, tune_allocator
from ..train.progress import Progress
from .child import Worker
from .clock import rounds
from .contender import FLOOR, FULL
from .memory import only
from .record import group
from .setting import Setting
from .work import backward, step_of

WHAT = (
    "seconds of a whole training step (forward, backward, optimiser) in a process with the C library's own allocator settings over "
    "one with tuned settings (deltaw.train.host.tune_allocator); the two processes take turns"
)
KINDS = ("default", "tuned")


def measure(setting: Setting, progress: Progress) -> list[dict[str, Any]]:
    names = [
        FLOOR,
        *(f"{who} {word}" for word in setting.methods for who in ("deltaw", *setting.against)),
        *([FULL] if setting.full else []),
    ]
    out = []
    for dtype in setting.dtypes:
        times: dict[str, list[float]] = {}
        sizes: dict[str, list[float]] = {}
        for name in names:  # two processes at a time: each holds a model
            alone = replace(setting, dtypes=(dtype,), allocator="default").to_dict()
            workers = {kind: Worker("allocator", {"setting": alone, "name": name, "kind": kind}) for kind in KINDS}
            try:
                for worker in workers.values():
                    worker.ask()
                work = {kind: partial(worker.ask, {}) for kind, worker in workers.items()}
                found = rounds(setting, progress, f"{name}, {dtype}", work)
            finally:
                for worker in workers.values():
                    worker.__exit__()
            for kind in KINDS:
                times[f"{name}, {kind}"] = found[kind]["step"]
                sizes[f"{name}, {kind}"] = found[kind]["resident"]
        pairs = [(f"{n}, default", f"{n}, tuned") for n in names]
        out.append(group(f"{dtype}: step", times, pairs))
        out.append(group(f"{dtype}: resident size after it", sizes, [(b, a) for a, b in pairs], "bytes"))
    return out


def child(setting: Setting, name: str, kind: str) -> Callable[[], dict[str, float]]:
    if kind == "tuned":
        tune_allocator()
    c, subject = only(setting, name)
    step = step_of(c, partial(backward, "hidden", c, subject, {}))

    def run() -> dict[str, float]:
        return {"step": sum(step().values()), "resident": float(rss())}

    return run
