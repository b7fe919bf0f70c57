"""SVD-LLM: the SVD of a weight in the metric of its inputs."""

from __future__ import annotations

from torch import Tensor

from ..rank.allocators import whole_share
from . import compressor
from .factorise import factorise, root


@compressor(paper="arXiv:2403.07378", needs=("inputs",))
class SVDLLM:
    """min |(W - W') X|_F over rank k: the SVD of W C, C Cᵀ = X Xᵀ (Cholesky), k = floor(keep m n / (m + n)). |(W - W') X|² = sum of the sigma_i², i > k.

    Not positive definite (fewer tokens than inputs): a multiple of I is added. Recovery: attach LoRA to the two factors, as to any linear
    layers; deltaw.compress(refit=True) fits L again by least squares. Source: Wang et al. 2024 and its code; solved with the triangle, not by
    its inverse; all batches count (the code's refit sees its last one). Trap: layer after layer (sequential=True) sees inputs that are already off.
    """

    def weight(self, W: Tensor, stats: dict[str, Tensor], keep: float) -> tuple[Tensor, Tensor, None]:
        C = root(stats["inputs"]).to(W.device)
        return *factorise(W, min(whole_share(keep, *W.shape), *W.shape), C=C)[:2], None
