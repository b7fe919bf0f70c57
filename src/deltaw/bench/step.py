"""The training step: forward and backward of every candidate over the floor, and the optimiser's share."""

from __future__ import annotations

import gc
from functools import partial
from typing import Any

from ..train.progress import Progress
from .clock import ratio, rounds, spread, total
from .contender import Contender, contenders, ratios_of
from .count import flops
from .record import group
from .setting import Setting
from .subject import load
from .work import backward, batch_of, step_of

WHAT = (
    "seconds of a training step: forward and backward with the gradient of the input, over the same of the frozen model "
    "(the floor); the optimiser (clip, AdamW, clear) is timed apart"
)


def measure(setting: Setting, progress: Progress) -> list[dict[str, Any]]:
    out = []
    for dtype in setting.dtypes:
        subject = load(setting, dtype)
        found = contenders(setting, subject, progress)
        loss, batch = setting.loss[0], batch_of(setting, subject) if setting.loss[0] != "hidden" else {}
        work = {name: step_of(c, partial(backward, loss, c, subject, batch)) for name, c in found.items()}
        for c in found.values():  # a first step besides
            c.facts["flops"] = flops(partial(backward, loss, c, subject, batch))
            for p in c.trained:
                p.grad = None
        times = rounds(setting, progress, f"step {dtype}", work)
        out.append(grouped(dtype if loss == "hidden" else f"{dtype}, {loss} loss", found, times))
        del subject, found, work
        gc.collect()
    return out


def grouped(title: str, found: dict[str, Contender], times: Any) -> dict[str, Any]:
    out = group(title, {name: parts["step"] for name, parts in times.items()}, ratios_of(found))
    for name, parts in times.items():
        out["measures"][name] |= found[name].facts
        if "optimizer" in parts:
            share = ratio(parts["optimizer"], total(parts))
            out["measures"][name]["optimizer"] = {
                **spread(parts["optimizer"]),
                "raw": parts["optimizer"],
                "share": share,
            }
    return out
