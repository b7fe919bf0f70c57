"""The training step: forward and backward of every candidate over the floor, and the optimiser's share."""

from __future__ import annotations

import gc
from functools import partial
from typing import Any

from ..train.progress import Progress
from .clock import interleave, ratio, spread, total
from .contender import FLOOR, FULL, Contender, contenders, forward_backward, step_of
from .record import group
from .setting import Setting
from .subject import load

WHAT = (
    "seconds of a training step: forward and backward with the gradient of the input, over the same of the frozen model "
    "(the floor); the optimiser (clip, AdamW, clear) is timed apart"
)


def measure(setting: Setting, progress: Progress) -> list[dict[str, Any]]:
    out = []
    for dtype in setting.dtypes:
        subject = load(setting, dtype)
        found = contenders(setting, subject, progress)
        work = {name: step_of(c, partial(forward_backward, c, subject)) for name, c in found.items()}
        progress.begin(len(work) * (setting.warmup + setting.repeats), what=f"step {dtype}")
        done = iter(range(1, 10**9))
        times = interleave(work, setting.repeats, setting.warmup, lambda done=done: progress.step(next(done)))  # type: ignore[misc]
        progress.end()
        out.append(grouped(dtype, found, times))
        del subject, found, work
        gc.collect()
    return out


def ratios_of(found: dict[str, Contender]) -> list[tuple[str, str]]:
    """Everything over the floor, and each of ours over its peer and over full fine-tuning."""
    pairs = [(name, FLOOR) for name in found if name != FLOOR]
    pairs += [(name, f"peft {c.method}") for name, c in found.items() if c.who == "deltaw" and f"peft {c.method}" in found]
    pairs += [(name, FULL) for name, c in found.items() if c.who == "deltaw" and FULL in found]
    first = next((name for name, c in found.items() if c.who == "deltaw"), None)
    return pairs + [(n, first) for n, c in found.items() if c.who == "deltaw" and n != first and first is not None]


def grouped(title: str, found: dict[str, Contender], times: Any) -> dict[str, Any]:
    out = group(title, {name: parts["step"] for name, parts in times.items()}, ratios_of(found))
    for name, parts in times.items():
        out["measures"][name] |= found[name].facts
        if "optimizer" in parts:
            share = ratio(parts["optimizer"], total(parts))
            out["measures"][name]["optimizer"] = {**spread(parts["optimizer"]), "raw": parts["optimizer"], "share": share}
    return out
