"""The peak resident size of a training step, in the process it is measured in."""

from __future__ import annotations

import ctypes
import gc
import platform
from collections.abc import Callable
from typing import Any

from ..errors import SpecError
from ..train.host import tune_allocator
from .setting import Setting

STEPS = 3


def peak_of(setting: Setting, step: Callable[[], None]) -> dict[str, Any]:
    """Make three steps in this process; its peak size, and what it was before the first."""
    gc.collect()
    trim()
    if setting.allocator == "tuned":  # only now: what loading freed is given back, not kept for the step
        tune_allocator()
    before = resident("VmRSS")
    reset()
    for _ in range(STEPS):
        step()
    peak = resident("VmHWM")
    return {"peak": peak, "before": before, "added": peak - before}


def resident(word: str) -> int:
    """VmRSS or VmHWM (its peak since `reset`) of this process, in bytes."""
    try:
        with open("/proc/self/status") as file:
            line = next(x for x in file if x.startswith(word + ":"))
    except (OSError, StopIteration) as error:
        raise SpecError(
            "the peak of a process is read from /proc/self/status, which this system does not have"
        ) from error
    return int(line.split()[1]) * 1024


def reset() -> None:
    """Start VmHWM anew from the present size."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def trim() -> None:
    """Give freed memory back, so that loading's leftovers do not serve the step."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
