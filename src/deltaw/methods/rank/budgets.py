"""Budgets over time: how much may be live at step t. Numbers in, a number out; p is the part of the way, cut to [0, 1]."""

from __future__ import annotations

import re

from ...errors import SpecError

UNITS = {"": 1, "B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KIB": 1024, "MIB": 1024**2, "GIB": 1024**3}


def bytes_of(size: int | str) -> int:
    """"2MB", "512 KiB" or a number of bytes."""
    if isinstance(size, int) and not isinstance(size, bool):
        return size
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?i?B?)\s*", str(size), re.IGNORECASE)
    if not match or match.group(2).upper() not in UNITS:
        raise SpecError(f"a size like 2MB or 512KiB was expected; found {size!r}")
    return int(float(match.group(1)) * UNITS[match.group(2).upper()])


def part(t: float, begin: float, end: float) -> float:
    """How far t is from begin (0) to end (1); 1 where the two meet."""
    return 1.0 if end <= begin else min(max((t - begin) / (end - begin), 0.0), 1.0)


def cubic_down(first: float, last: float, p: float) -> int:
    """last + (first - last) (1 - p)³, rounded down: most is given up early."""
    return int(last + (first - last) * (1.0 - p) ** 3)


def late_cubic(first: float, last: float, p: float) -> int:
    """first - floor((first - last) p³): most is given up late."""
    return int(first) - int((first - last) * p**3)


def linear(first: float, last: float, p: float) -> int:
    return int(first + (last - first) * p)


def swaps(most: float, p: float) -> int:
    """round(most (1 - p³)): how many terms may change hands; none at the end."""
    return round(most * (1.0 - p**3))


def rung(p: float, count: int) -> int:
    """Which of `count` equal parts of the way p is in: 0 .. count - 1."""
    return min(int(p * count), count - 1)
