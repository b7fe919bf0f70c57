"""What is done to a base: its weights factorised, pruned or quantised; and fits of dense matrices by the factors that methods train.

An entry is a frozen dataclass, one file each, with `weight(W, stats, keep) -> tensors`: (L, R, bias or None) for W ~ L R, or (W',) for
a weight of the same shape; keep is the share of the parameters that stays. `needs` names what it looks at at a site ("inputs", "mean",
"scales": see deltaw.probe). deltaw.compress applies one to a model. What acts on a whole model has functions of its own instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ...spec import Registry, entry
from .factorise import factorise
from .hadamard import Hadamards, hadamard_als
from .kronecker import kronecker_svd
from .weighted import Weighted, weighted_als, weighted_svd

__all__ = [
    "COMPRESSORS", "Hadamards", "Weighted", "compressor", "factorise", "hadamard_als", "kronecker_svd", "weighted_als", "weighted_svd",
]  # fmt: skip

T = TypeVar("T")
COMPRESSORS: Registry[Any] = Registry("compressor")


def compressor(*, paper: str, needs: tuple[str, ...] = ()) -> Callable[[type[T]], type[T]]:
    """Register an entry under the name of its module."""
    return entry(COMPRESSORS, paper, needs=frozenset(needs))
