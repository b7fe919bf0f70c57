"""HD-PiSSA: every worker moves its own principal directions of W, and all moves go into W."""

from __future__ import annotations

from ..workers import Averaged
from . import update
from .algebra import MatrixUpdate
from .algebra.slices import Slices


@update(paper="arXiv:2505.18777")
class HDPiSSA(MatrixUpdate):
    """W <- W + sum_k (B_k - dB_k)(A_k - dA_k) - B_k A_k over workers k; B_k A_k is slice k of r singular triplets of the first W,
    never updated, dA_k and dB_k are Adam's steps (lr inside) on s B_kᵀ G_k and s G_k A_kᵀ, s = alpha / r, G_k of worker k's data.

    Workers: the processes, times `workers` slices in each, which then share a gradient. Start it in every process with the
    same weights, without DDP: gradients of matrices are not averaged, those of the rest are. State of an m x n matrix:
    2 w r (m + n) moments, and all K frames, K r (m + n), gathered once. Each process keeps (and saves) its own state.
    Source: Wang et al. 2025, their code (whose s is the integer part of alpha / r).
    Trap: it is a sum: moves grow with the number of workers. in_backward averages, so it is for one process only.
    """

    r: int = 16
    alpha: float = 16.0
    workers: int = 1
    weight_decay: float = 0.0

    def rule(self) -> Slices:
        return Slices(self.r, self.workers, self.alpha / self.r)

    def plain(self) -> Averaged:
        return Averaged()
