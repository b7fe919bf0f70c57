"""HD-PiSSA: every worker moves its own principal directions of W, and all moves go into W."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ShapeError
from ..workers import Averaged, gather, place
from . import NOTHING, About, update
from .algebra import Adam, Rule, Step, SubOptimizer, matrices, signed


@dataclass(frozen=True)
class Slices(Rule):
    """The rule of one matrix: frames from the SVD of W at the first step, Adam on their coordinates, the sum into W."""

    r: int
    workers: int
    s: float

    def frames(self, W: Tensor, name: str) -> dict[str, Tensor]:
        """B (K, m, r), A (K, r, n) of all K workers: each process sends the slices that are its own."""
        (rank, size), w = place(), self.workers
        if size * w * self.r > min(W.shape):
            raise ShapeError(
                f"{name}: {size * w * self.r} directions for all workers together; a weight {tuple(W.shape)} has {min(W.shape)}"
            )
        U, S, V = torch.linalg.svd(W.to(torch.promote_types(W.dtype, torch.float32)), full_matrices=False)
        sign, mine = (signed(U) * U).sum(0).sign(), slice(rank * w * self.r, (rank + 1) * w * self.r)
        B, A = (U * sign * S.sqrt())[:, mine], ((sign * S.sqrt())[:, None] * V)[mine]
        own = (t.clone(memory_format=torch.contiguous_format) for t in (B.unflatten(1, (w, -1)).movedim(1, 0), A.unflatten(0, (w, -1))))
        return dict(zip("BA", map(gather, own)))  # in rows, as from a file, and no views that hold all of U and V

    def step(self, p: dict[str, Tensor], g: dict[str, Tensor], state: dict[str, dict[str, Any]], now: Step) -> None:
        W, s, lr, first = p["W"], state["W"], now.lr["W"], place()[0] * self.workers
        if "frame" not in s:
            s |= {"frame": self.frames(W, now.name), "A": {}, "B": {}}
        B, A = s["frame"]["B"], s["frame"]["A"]
        G, mine, move = g["W"].to(B.dtype), slice(first, first + self.workers), {}
        for k, C in (("A", B[mine].mT @ G), ("B", G @ A[mine].mT)):
            U, gain = Adam()(self.s * C, s[k])
            move[k] = gather(lr * gain * U)
        W.mul_(1 - lr * now.decay["W"])
        left, right = torch.cat([B - move["B"], -move["B"]]), torch.cat([-move["A"], A])  # (B - dB)(-dA) + (-dB) A
        W.add_((left.movedim(0, 1).flatten(1) @ right.flatten(0, 1)).to(W))


@update(paper="arXiv:2505.18777")
class HDPiSSA:
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

    def floats(self, m: int, n: int) -> int:
        """Numbers of optimiser state for an m x n matrix in one process alone."""
        return 3 * self.workers * self.r * (m + n)

    def optimizer(
        self, named: Mapping[str, nn.Parameter], lr: float, about: About = NOTHING, **kw: Any
    ) -> SubOptimizer:
        rule = Slices(self.r, self.workers, self.alpha / self.r)
        return matrices(rule, named, lr, about, Averaged(), **{"weight_decay": self.weight_decay, **kw})
