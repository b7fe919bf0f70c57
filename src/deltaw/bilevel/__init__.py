"""Two levels: an outer variable x (data weights, ranks, mixing coefficients) over an inner problem in y (an adapter's factors)."""

from .bo_rep import BoRep
from .lookahead import lookahead_reward

__all__ = ["BoRep", "lookahead_reward"]
