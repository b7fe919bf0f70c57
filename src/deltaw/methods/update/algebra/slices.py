"""One matrix moved by several workers at once, each along its own slice of the principal directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....errors import ShapeError
from ....lowrank import signs
from ....sites.watch import place
from ...workers import gather
from .inners import Adam
from .optimizer import Rule, Step


@dataclass(frozen=True)
class Slices(Rule):
    """Frames from the SVD of W at the first step, Adam on their coordinates, the sum of all workers' moves into W."""

    r: int
    workers: int
    s: float

    def floats(self, m: int, n: int) -> int:
        """Of one process alone."""
        return 3 * self.workers * self.r * (m + n)

    def frames(self, W: Tensor, name: str) -> dict[str, Tensor]:
        """B (K, m, r), A (K, r, n) of all K workers: each process sends the slices that are its own."""
        (rank, size), w = place(), self.workers
        if size * w * self.r > min(W.shape):
            raise ShapeError(
                f"{name}: {size * w * self.r} directions for all workers together; a weight {tuple(W.shape)} has {min(W.shape)}"
            )
        U, S, V = torch.linalg.svd(W.to(torch.promote_types(W.dtype, torch.float32)), full_matrices=False)
        sign, mine = signs(U), slice(rank * w * self.r, (rank + 1) * w * self.r)
        B, A = (U * sign * S.sqrt())[:, mine], ((sign * S.sqrt())[:, None] * V)[mine]
        parts = {"B": B.unflatten(1, (w, -1)).movedim(1, 0), "A": A.unflatten(0, (w, -1))}
        # in rows, as from a file, and no views that hold all of U and V
        return {k: gather(t.clone(memory_format=torch.contiguous_format)) for k, t in parts.items()}

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
