"""A basis that several weights share, and which weights those are."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import Op


def kind_of(name: str) -> str:
    """What a projection is in every block: the last two words of its name, or one if the word before it is a number."""
    words = name.split(".")
    if words[-3:] == ["attention", "output", "dense"]:  # not the "output.dense" of the block itself
        return "attention_output"
    return words[-1] if len(words) == 1 or words[-2].isdigit() else "_".join(words[-2:])


def shared_basis(weights: list[Op], ridge: float) -> Tensor:
    """V (n, n) = Rᵀ E from the QR of the stacked weights, E the eigenvectors of the mean of (Q_lᵀ Q_l + ridge I)⁻¹ over
    its slices; the right singular vectors where the stack has fewer rows than columns. In float32, as HF PEFT computes it:
    any basis serves, but PEFT pairs the one in a file with what it computes from its own."""
    parts = [W.dense().detach().float() for W in weights]
    stack = torch.cat(parts)
    if stack.shape[0] < stack.shape[1]:
        return torch.linalg.svd(stack).Vh.mT
    Q, R = torch.linalg.qr(stack)
    eye, total = ridge * torch.eye(stack.shape[1]).to(stack), torch.zeros_like(R)
    for q in Q.split([len(w) for w in parts]):
        total += torch.linalg.inv(q.mT @ q + eye)
    return R.mT @ torch.linalg.eigh(total / len(parts)).eigenvectors


def in_basis(W: Op, V: Tensor) -> Tensor:
    """B (m, n) with W = B Vᵀ; the least-squares one where V is singular."""
    w, v = W.dense().detach().double(), V.detach().double()
    try:
        return torch.linalg.solve(v, w.mT).mT
    except torch.linalg.LinAlgError:
        return w @ torch.linalg.pinv(v, rtol=1e-6).mT


def off_diagonal(t: Tensor, n: int) -> Tensor:
    """The flat positions in an n x n matrix of the entries number t of those off its diagonal."""
    return t + t // max(n, 1) + 1
