"""Sensitivity-LoRA: ranks by how much the loss of a layer's output feels a change of its weight."""

from __future__ import annotations

import torch
from torch import Tensor

from ...spec import Start
from ..init import innermost
from . import allocators, ranks


@ranks(paper="arXiv:2509.09119", needs=("inputs",))
class SensitivityLoRA:
    """H = 2 XᵀX / tokens, h its diagonal. S1 = sum_j h_j |W_:j|², S2 = (sum of the top k of h) / (sum of h), S3 = the smallest k whose
    eigenvalues hold a share tau of H's. Each is divided by its mean over the sites, S = w1 S1 + w2 S2 + w3 S3; ranks in proportion to S,
    within [r_min, r_max], with the sum that the plan's own ranks have.

    A reading: the paper's abstract tells of a diagonal Hessian, a global metric and two local ones, "top-k" and "effective rank"; how they are
    defined and mixed is ours. k = top of the inputs' size. Source: Zhang et al. 2025. Trap: without W in S1, sites that read the same input
    could not be told apart.
    """

    top: float = 0.1
    tau: float = 0.9
    weights: tuple[float, float, float] = (1 / 3, 1 / 3, 1 / 3)
    r_min: int = 1
    r_max: int = 64

    def ranks(self, starts: list[Start], stats: dict[str, dict[str, Tensor]]) -> dict[str, int]:
        three = {s.name: self.of(s.dense().double(), 2 * stats[s.name]["inputs"].double()) for s in starts}
        means = [max(sum(v[i] for v in three.values()) / len(three), 1e-300) for i in range(3)]
        score = {k: sum(w * v[i] / means[i] for i, w in enumerate(self.weights)) for k, v in three.items()}
        room = {s.name: min(self.r_max, *s.W.shape) for s in starts}
        return allocators.proportional(score, sum(innermost(s.method).r for s in starts), self.r_min, room)  # type: ignore[attr-defined]

    def of(self, W: Tensor, H: Tensor) -> tuple[float, float, float]:
        h, W = H.diagonal(), W.to(H)
        k = max(1, round(self.top * len(h)))
        eigen = torch.linalg.eigvalsh(H).clamp(min=0).sqrt()
        return float((h * W.square().sum(0)).sum()), float(h.topk(k).values.sum() / h.sum()), float(allocators.energy(eigen, self.tau))
