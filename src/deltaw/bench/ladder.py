"""A ladder of learning rates that grows while the best rate is at an end of it."""

from __future__ import annotations

import math
from collections.abc import Mapping

FACTOR = 10**0.5  # between two rungs


def next_rung(losses: Mapping[float, float | None], most: int) -> float | None:
    """The rate to try next, a factor of sqrt 10 beyond the best one while that is the lowest or the highest of those tried.

    losses: rate -> validation loss, lower is better; None or not finite: the run diverged. If all did, a lower rate is next. None
    once worse rates lie on both sides of the best one, or `most` rates were tried.

    >>> next_rung({0.001: 2.0, 0.01: 1.0}, most=3), next_rung({0.001: 2.0, 0.01: 1.0, 0.0316: 1.5}, most=4)
    (0.0316, None)
    """

    def loss(rate: float) -> float:
        found = losses[rate]
        return math.inf if found is None or math.isnan(found) else found

    best = min(sorted(losses), key=loss)
    if len(losses) >= most or min(losses) < best < max(losses):
        return None
    return float(f"{best * FACTOR if best == max(losses) and loss(best) < math.inf else best / FACTOR:.3g}")
