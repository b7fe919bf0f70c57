"""The algebra of maps: leaves, combinators, rules (torch only)."""

from .core import Affine, Base, Map, Op, Open, watch_dense
from .leaves import BlockDiag, Dense, Diag, Eye, Zero
from .nodes import Chain, Hadamard, Kron, Sum, Transpose, add, as_op, chain, scale
from .rules import cost, delta, factors, rank_bound, row_norm

__all__ = [
    "Affine", "Base", "BlockDiag", "Chain", "Dense", "Diag", "Eye", "Hadamard", "Kron", "Map", "Op", "Open", "Sum",
    "Transpose", "Zero", "add", "as_op", "chain", "cost", "delta", "factors", "rank_bound", "row_norm", "scale",
    "watch_dense",
]  # fmt: skip
