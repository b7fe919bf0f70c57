"""Plain truncated SVD of each weight: the baseline."""

from __future__ import annotations

from torch import Tensor

from ..rank.allocators import whole_share
from . import compressor
from .factorise import factorise


@compressor(paper="(Eckart and Young 1936)")
class SVD:
    """W' = U_k S_k V_kᵀ as two factors, k = floor(keep m n / (m + n)): the nearest in |W - W'|_F. Looks at no data."""

    def weight(self, W: Tensor, stats: dict[str, Tensor], keep: float) -> tuple[Tensor, Tensor, None]:
        return *factorise(W, min(whole_share(keep, *W.shape), *W.shape))[:2], None
