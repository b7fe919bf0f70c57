"""A radio channel as a budget for what an adapter may send."""

from __future__ import annotations

import math
from collections.abc import Mapping


def cost(ranks: Mapping[str, int], sizes: Mapping[str, tuple[int, int]], bits: float, bandwidth: float, snr: float, latency: float) -> float:
    """bits sum r (m + n + 1) / (bandwidth log2(1 + 10^(snr / 10)) latency): above 1 it does not get through in time. bandwidth in Hz, snr in
    dB, latency in seconds."""
    sent = sum(r * (sum(sizes[k]) + 1) for k, r in ranks.items())
    return bits * sent / (bandwidth * math.log2(1 + 10 ** (snr / 10)) * latency)


def affordable(bits: float, bandwidth: float, snr: float, latency: float) -> float:
    """How many numbers get through in time."""
    return bandwidth * math.log2(1 + 10 ** (snr / 10)) * latency / bits


def reward(loss: float, cost: float, weight: float = 0.1) -> float:
    """-loss - weight cost where it gets through; -(10 cost) - weight cost where it does not, and then no step is made."""
    return -loss - weight * cost if cost <= 1 else -(10 * cost) - weight * cost


def decoded(u: float, r_min: int, r_max: int) -> int:
    """A number in [-1, 1] as a rank: r_min + floor((u + 1) / 2 (r_max - r_min))."""
    return r_min + math.floor((min(max(u, -1.0), 1.0) + 1) / 2 * (r_max - r_min))


def encoded(r: int, r_min: int, r_max: int) -> float:
    """The u in the middle of those that mean r."""
    return min(2 * (r - r_min + 0.5) / max(r_max - r_min, 1) - 1, 1.0)
