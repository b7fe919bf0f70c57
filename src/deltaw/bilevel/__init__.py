"""Two levels: an outer variable x (data weights, ranks, mixing coefficients) over an inner problem in y (an adapter's factors)."""

from .bo_rep import BoRep
from .darts import hypergradient
from .lookahead import lookahead_reward

__all__ = ["BoRep", "hypergradient", "lookahead_reward"]
