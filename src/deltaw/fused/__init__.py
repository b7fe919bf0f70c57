"""Fused forwards and backwards: faster ways to evaluate expressions that `ops` can evaluate by itself.

A path is chosen by the pattern of the expression, never by the method, and has the plain walk (`Affine.walk`) as its
reference. `walking()` switches them off.

    thin.py      W + a product of thin factors, in one autograd function
    joined.py    W + a delta that would be built as a matrix anyway: one product with the sum
    choose.py    which of them, by a cost rule
"""

from . import choose
from .choose import walking
from .dropout import Dropped

__all__ = ["Dropped", "choose", "walking"]
