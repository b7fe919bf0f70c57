"""Budgets over time: how much may be live at step t. Numbers in, a number out; p is the part of the way, cut to [0, 1]."""

from __future__ import annotations


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
