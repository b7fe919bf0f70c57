"""HD-PiSSA: every worker moves its own principal directions of W, and all moves go into W."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ShapeError
from ...sites.watch import mean_of_processes, several
from . import NOTHING, About, update
from .algebra import Adam, Plain, Rule, Step, SubOptimizer, matrices, signed


def gather(t: Tensor) -> Tensor:
    """(processes, ...): everybody's."""
    if not several():
        return t[None]
    parts = [torch.empty_like(t) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, t.contiguous())
    return torch.stack(parts)


@dataclass(frozen=True)
class Slices(Rule):
    """The rule of one matrix: frames from the SVD of W at the first step, Adam on their coordinates, the sum into W."""

    r: int
    workers: int
    s: float

    def frames(self, W: Tensor, name: str) -> dict[str, Tensor]:
        """B (workers, m, r), A (workers, r, n) of this process's slices."""
        first = self.workers * torch.distributed.get_rank() if several() else 0
        total = self.workers * (torch.distributed.get_world_size() if several() else 1) * self.r
        if total > min(W.shape):
            raise ShapeError(
                f"{name}: {total} directions for all workers together; a {W.shape[0]} x {W.shape[1]} weight has {min(W.shape)}"
            )
        U, S, V = torch.linalg.svd(W.to(torch.promote_types(W.dtype, torch.float32)), full_matrices=False)
        V = V * (signed(U) * U).sum(0).sign()[:, None]
        B, A = signed(U) * S.sqrt(), S.sqrt()[:, None] * V
        mine = slice(first * self.r, (first + self.workers) * self.r)
        return {
            "B": B[:, mine].unflatten(1, (-1, self.r)).movedim(1, 0).contiguous(),
            "A": A[mine].unflatten(0, (-1, self.r)).contiguous(),
        }

    def step(self, p: dict[str, Tensor], g: dict[str, Tensor], state: dict[str, dict[str, Any]], now: Step) -> None:
        W, s, lr = p["W"], state["W"], now.lr["W"]
        if "frame" not in s:
            own = self.frames(W, now.name)
            s |= {"frame": {k: gather(t).flatten(0, 1) for k, t in own.items()}, "A": {}, "B": {}}
        frame, first = s["frame"], self.workers * (torch.distributed.get_rank() if several() else 0)
        G, mine = g["W"].to(frame["B"].dtype), slice(first, first + self.workers)
        move = {}
        for k, C in (("A", frame["B"][mine].mT @ G), ("B", G @ frame["A"][mine].mT)):
            U, gain = Adam()(self.s * C, s[k])
            move[k] = gather(lr * gain * U).flatten(0, 1)
        W.mul_(1 - lr * now.decay["W"])
        new = torch.cat([frame["B"] - move["B"], -move["B"]]), torch.cat([-move["A"], frame["A"]])
        W.add_((new[0].movedim(0, 1).flatten(1) @ new[1].flatten(0, 1)).to(W))


class Averaged(Plain):
    """AdamW on the mean gradient of the processes, which no DDP has formed."""

    def step(self, p: dict[str, Tensor], g: dict[str, Tensor], state: dict[str, dict[str, Any]], now: Step) -> None:
        super().step(p, {k: mean_of_processes(t.clone()) for k, t in g.items()} if several() else g, state, now)


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
