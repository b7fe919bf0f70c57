"""Low-rank matrices as values: sums, cuts, factorisations and retractions by thin QR and a small core, never m x n."""

from .incremental import IncrementalSVD
from .matrix import LowRankMatrix, core_svd, keep, signs

__all__ = ["IncrementalSVD", "LowRankMatrix", "core_svd", "keep", "signs"]
