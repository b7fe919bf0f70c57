"""Interleaved measurement: A, B, C, A, B, C, ...; a ratio compares two times of the same round.

What a machine does to a time (frequency, other work, the allocator's state) changes slowly, so two times taken one
after the other share it and their ratio does not. The median over the rounds then drops the rounds that were disturbed.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..train.progress import Progress
    from .setting import Setting

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""cpu: seconds of this process on all cores; other work on the machine does not count, waiting threads that spin do."""
_chosen = "wall"

Timed = Callable[[], dict[str, float]]
Times = dict[str, dict[str, list[float]]]
"""candidate -> part of its work -> seconds of every round"""


def use(name: str) -> None:
    """The clock of every measurement from here on."""
    global _chosen
    _chosen = name


def now() -> float:
    return CLOCKS[_chosen]()


def rounds(setting: Setting, progress: Progress, what: str, candidates: Mapping[str, Timed]) -> Times:
    """`interleave` as a setting says, with a progress bar."""
    done = itertools.count(1)
    progress.begin(len(candidates) * (setting.warmup + setting.repeats), what=what)
    try:
        return interleave(candidates, setting.repeats, setting.warmup, lambda: progress.step(next(done)))
    finally:
        progress.end()


def interleave(
    candidates: Mapping[str, Timed], rounds: int, warmup: int, tell: Callable[[], None] = lambda: None
) -> Times:
    """Run every candidate once a round, in the same order; the first `warmup` rounds are thrown away.

    A candidate measures itself and returns seconds by part. The garbage collector runs between candidates, never inside,
    and over new objects only: a full collection would leave cold caches to whoever comes next.
    """
    times: Times = {name: {} for name in candidates}
    was = gc.isenabled()
    gc.disable()
    gc.collect()
    gc.freeze()
    try:
        for number in range(warmup + rounds):
            for name, timed in candidates.items():
                gc.collect()
                found = timed()
                if number >= warmup:
                    for part, seconds in found.items():
                        times[name].setdefault(part, []).append(seconds)
                tell()
    finally:
        gc.unfreeze()
        if was:
            gc.enable()
    return times


def timed(work: Callable[[], Any], part: str = "time", repeat: int = 1) -> Timed:
    """A candidate that does `work` `repeat` times and reports the seconds of one."""

    def run() -> dict[str, float]:
        began = now()
        for _ in range(repeat):
            work()
        return {part: (now() - began) / repeat}

    return run


def calibrated(work: Callable[[], Any], least: float = 0.02) -> int:
    """How often short work has to be repeated for one time to be well above the clock's own noise."""
    work()
    began = now()
    work()
    return max(1, min(10_000, round(least / max(now() - began, 1e-7))))


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles, smallest, largest and the number of values."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    middle = statistics.median(values)
    return {"median": middle, "q1": low, "q3": high, "min": min(values), "max": max(values), "n": len(values)}


def ratio(over: Sequence[float], under: Sequence[float]) -> dict[str, float]:
    """The spread of the ratios round by round."""
    return spread([a / b for a, b in zip(over, under, strict=True)])


def total(parts: Mapping[str, Sequence[float]], names: Iterable[str] | None = None) -> list[float]:
    """Seconds of some parts (default: all) together, round by round."""
    return [sum(row) for row in zip(*(parts[n] for n in (parts if names is None else names)), strict=True)]
