"""The machine under a run: the C allocator and the memory high-water mark."""

from __future__ import annotations

import atexit
import ctypes
import gc
import os
import platform
import sys

import torch

# mallopt(3): parameter numbers from <malloc.h>. With the defaults every step may map and unmap its large buffers and pay
# for the page faults; kept inside the heap they are reused, for more memory. What it gains depends on the machine.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
SETTINGS = ((M_MMAP_THRESHOLD, 1 << 30), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 256 << 20))


def tune_allocator() -> str:
    """Ask glibc to keep freed memory in this process; returns "tuned" or why not. Process-wide, cannot be undone."""
    if platform.libc_ver()[0] != "glibc":
        return "not tuned: the C library is not glibc"
    if "malloc" in os.environ.get("LD_PRELOAD", ""):
        return "not tuned: another allocator is preloaded"
    mallopt = ctypes.CDLL(None).mallopt
    mallopt.argtypes, mallopt.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    refused = [str(number) for number, value in SETTINGS if mallopt(number, value) != 1]
    return f"not tuned: mallopt refused parameter {', '.join(refused)}" if refused else "tuned"


def has_accelerator() -> bool:
    """A GPU or the like. Without one accelerate has to be told so, or it ignores the processes torchrun starts."""
    return torch.accelerator.is_available()


def peak_rss() -> int:
    """The largest resident size of this process so far, in bytes (0 where the platform does not tell)."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def rss() -> int:
    """The resident size now, in bytes; the peak where /proc is missing."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_rss()


def leave_group_at_exit() -> None:
    """Close the process group, if one was opened, before the interpreter goes: a thread of its that is still running then
    ends the process with SIGABRT, after a run that succeeded."""
    atexit.unregister(_leave_group)
    atexit.register(_leave_group)


def _leave_group() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()  # DDP's wrapper lies in a cycle and holds the group: as long as it lives the threads do
        torch.distributed.destroy_process_group()
