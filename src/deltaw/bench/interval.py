"""Student's interval of a mean."""

from __future__ import annotations

import math
import statistics

# the 97.5 % quantile at 1 to 15 degrees of freedom
T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % t-interval; infinite for one value, a little wide for more than 16."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.inf
    return mean, T975[min(len(values) - 2, len(T975) - 1)] * statistics.stdev(values) / math.sqrt(len(values))
