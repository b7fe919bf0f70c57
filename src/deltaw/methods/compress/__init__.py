"""Fitting a dense matrix, such as a trained change or the difference of two checkpoints, by the factors that methods train.

Plain functions on tensors, one file each.
"""

from .hadamard import Hadamards, hadamard_als
from .kronecker import kronecker_svd
from .weighted import Weighted, weighted_als, weighted_svd

__all__ = ["Hadamards", "Weighted", "hadamard_als", "kronecker_svd", "weighted_als", "weighted_svd"]
