"""Trained rank pruning: cut to low rank every few steps, and pushed there in between."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import SpecError
from ..convolution import channels, spatial
from . import Rule, View, rule


def cut(W: Tensor, energy: float) -> tuple[Tensor, Tensor, Tensor]:
    """(U, S, V) of W with the fewest singular values that hold a share `energy` of the sum of all squares."""
    U, S, V = torch.linalg.svd(W, full_matrices=False)
    held = S.square().cumsum(0)
    k = int((held < energy * held[-1]).sum()) + 1
    k = min(k, len(S))
    return U[:, :k], S[:k], V[:k]


@rule(paper="arXiv:2004.14566")
class TRPCut(Rule):
    """After every `every`-th step `tensor` (m, n) <- U_k diag(S_k) V_k, with the smallest k for which the kept squares are a
    share `energy` of all; in the step that follows its gradient gets penalty · U_k V_k, a subgradient of the truncated nuclear
    norm there. energy = 1 and penalty = 0: plain training. kernel: () for a convolution as (N, C kh kw), (kh, kw) for (C kh, N kw).

    The source cuts before the forward pass of steps 0, p, 2p, ...: the same, but for step 0, where nothing is trained yet.
    Its momentum is left alone by a cut, so it is here. Trap: cuts are made whatever the learning rate, also at 0.
    """

    energy: float = 0.9
    penalty: float = 3e-4
    every: int = 5
    tensor: str = "D"
    kernel: tuple[int, ...] = ()

    def start(self, view: View) -> dict[str, Tensor]:
        if not 0 < self.energy <= 1:
            raise SpecError(f"trp keeps a share `energy` of the squares, above 0 and up to 1; found {self.energy}")
        if self.tensor not in view.p.names():
            raise SpecError(f"{view.name}: trp cuts the tensor '{self.tensor}'; {view.method} has {', '.join(view.p.names())}")
        spatial(getattr(view.p, self.tensor), self.kernel)  # raises where it does not fit
        return {}

    def before(self, view: View) -> None:
        t = getattr(view.p, self.tensor)
        if "push" in view.s:
            push = view.s.pop("push")
            if t.grad is not None:
                t.grad.add_(push.to(t.grad), alpha=self.penalty)

    def after(self, view: View) -> None:
        if view.step % self.every == 0:
            U, S, V = cut(spatial(getattr(view.p, self.tensor), self.kernel), self.energy)
            if self.energy < 1:
                view.set(self.tensor, channels((U * S) @ V, self.kernel))
            if self.penalty:
                view.s["push"] = channels(U @ V, self.kernel)
