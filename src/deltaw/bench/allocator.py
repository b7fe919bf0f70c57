"""What tuning the C allocator is worth: the same step in two processes that take turns, one tuned, one not."""

from __future__ import annotations

import statistics
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
from .work import backward, batch_of, step_of

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
        faults: dict[str, float] = {}
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
                faults[f"{name}, {kind}"] = statistics.median(found[kind]["faults"])
        pairs = [(f"{n}, default", f"{n}, tuned") for n in names]
        out.append(
            group(f"{dtype}: step, {setting.loss[0]} loss", times, pairs, facts={"page faults of a step": faults})
        )
        out.append(group(f"{dtype}: resident size after it", sizes, [(b, a) for a, b in pairs], "bytes"))
    return out


def page_faults() -> int:
    """Pages this process has had to be given; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def child(setting: Setting, name: str, kind: str) -> Callable[[], dict[str, float]]:
    if kind == "tuned":
        tune_allocator()
    c, subject = only(setting, name)
    loss = setting.loss[0]
    step = step_of(c, partial(backward, loss, c, subject, {} if loss == "hidden" else batch_of(setting, subject)))

    def run() -> dict[str, float]:
        before = page_faults()
        spent = sum(step().values())
        return {"step": spent, "resident": float(rss()), "faults": float(page_faults() - before)}

    return run
