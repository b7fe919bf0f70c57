"""ASVD: the SVD of a weight whose columns are scaled by how large their inputs are."""

from __future__ import annotations

from torch import Tensor

from ..rank.allocators import whole_share
from . import compressor
from .factorise import factorise


@compressor(paper="arXiv:2312.05821", needs=("scales",))
class ASVD:
    """min |(W - W') diag(d)|_F over rank k, d_j = (mean |x_j|)^a + 1e-6; k = floor(keep m n / (m + n)) rounded up to a multiple of align.

    Its search of a ratio for every site is deltaw.search_ratios, over measured perplexities (`deltaw compress --search`).
    Source: Yuan et al. 2023 and its code (a 0.5, the sum over batches of mean |x|: the same up to one factor). Trap: rounding up may cost
    more than the dense weight near keep = 1.
    """

    a: float = 0.5
    align: int = 1

    def weight(self, W: Tensor, stats: dict[str, Tensor], keep: float) -> tuple[Tensor, Tensor, None]:
        k = -(-whole_share(keep, *W.shape) // self.align) * self.align
        return *factorise(W, min(k, *W.shape), C=stats["scales"].double() ** self.a + 1e-6)[:2], None
