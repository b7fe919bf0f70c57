"""Scores of rank-one terms: how much each matters. Tensors in, tensors out."""

from __future__ import annotations

import torch
from torch import Tensor


def sensitivity(t: Tensor) -> Tensor:
    """|t * dL/dt| entry by entry; 0 where there is no gradient or it is not finite."""
    return torch.zeros_like(t) if t.grad is None else (t.detach() * t.grad).abs().nan_to_num(0.0, 0.0, 0.0)


def smooth(I: Tensor, U: Tensor, new: Tensor, beta1: float, beta2: float) -> None:  # noqa: E741
    """In place: I <- beta1 I + (1 - beta1) new; U <- beta2 U + (1 - beta2) |new - I|, with the I just made."""
    I.mul_(beta1).add_(new, alpha=1 - beta1)
    U.mul_(beta2).add_((new - I).abs(), alpha=1 - beta2)


def of_terms(score: dict[str, Tensor], slots: dict[str, int]) -> Tensor:
    """(r,): of each term, its gate's score plus the mean score of its vector in every factor."""
    parts = [s if s.dim() == 1 else s.movedim(slots[k], 0).flatten(1).mean(1) for k, s in score.items()]
    return torch.stack(parts).sum(0)


def norms(B: Tensor, g: Tensor, A: Tensor) -> Tensor:
    """(r,): |g_i b_i a_i|_F = |g_i| |b_i| |a_i|."""
    found: Tensor = g.abs() * torch.linalg.vector_norm(B, dim=0) * torch.linalg.vector_norm(A, dim=1)
    return found


def norm(B: Tensor, g: Tensor, A: Tensor) -> Tensor:
    """|B diag(g) A|_F from two Gram matrices: no m x n matrix, and no r of them, is made."""
    A = g[:, None] * A
    return ((B.mT @ B) * (A @ A.mT)).sum().clamp(min=0).sqrt()


def share(B: Tensor, g: Tensor, A: Tensor, eps: float = 1e-8) -> Tensor:
    """(r,): of each term, its norm as a part of the whole update's. The squares sum to 1 where the terms are orthogonal."""
    return norms(B, g, A) / (norm(B, g, A) + eps)
