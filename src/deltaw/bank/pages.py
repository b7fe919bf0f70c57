"""Memory for large arenas in huge pages, where the system hands them out on request."""

from __future__ import annotations

import ctypes
import sys

from torch import Tensor

HUGE, MADV_HUGEPAGE = 2 << 20, 14  # bytes; <sys/mman.h> of Linux


def in_huge_pages(t: Tensor) -> Tensor:
    """t, with its memory not yet touched asked for in huge pages: filling it then costs a fault for every 2 MB instead of
    one for every 4 kB. A request, not a need: where it is refused, or on another system, nothing changes."""
    size = t.numel() * t.element_size()
    if sys.platform == "linux" and t.device.type == "cpu" and size >= 2 * HUGE:
        start = -(-t.data_ptr() // HUGE) * HUGE
        length = (t.data_ptr() + size - start) // HUGE * HUGE
        libc = ctypes.CDLL(None)
        libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        libc.madvise(start, length, MADV_HUGEPAGE)
    return t
