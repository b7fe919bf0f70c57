"""Scores of heads and neurons from the gradients of LoRA's factors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BLOCKS = {
    "q_proj": ("attention", 0), "k_proj": ("attention", 0), "v_proj": ("attention", 0), "o_proj": ("attention", 1),
    "gate_proj": ("mlp", 0), "up_proj": ("mlp", 0), "down_proj": ("mlp", 1),
}  # fmt: skip
"""Projection -> its block, and the axis of its weight along which the block's units lie."""


def estimate(B: Tensor, A: Tensor, G_B: Tensor, G_A: Tensor) -> Tensor:
    """G_B A + B G_A - G_B G_A: a stand-in for dL/dW from the gradients of the factors alone."""
    return G_B @ A + B @ G_A - G_B @ G_A


def unit_scores(W: Tensor, B: Tensor, A: Tensor, s: float, G_B: Tensor, G_A: Tensor, axis: int, rows: int = 1024) -> Tensor:
    """sum over the other axis of |estimate * (W + s B A)|, in chunks of rows: no second m x n matrix is made."""
    parts = []
    for k in range(0, len(W), rows):
        cut = slice(k, k + rows)
        S = (estimate(B[cut], A, G_B[cut], G_A) * (W[cut] + s * B[cut] @ A)).abs()
        parts.append(S.sum(1) if axis == 0 else S.sum(0))
    return torch.cat(parts) if axis == 0 else torch.stack(parts).sum(0)


def normalised(view: Any, axis: int, each: int) -> Tensor:
    """The scores of a projection's units, divided by their norm."""
    p = view.p
    G_B, G_A = (torch.zeros_like(t) if t.grad is None else t.grad for t in (p.B, p.A))
    score = unit_scores(view.base(), p.B.detach(), p.A.detach(), view.method.alpha / view.method.r, G_B, G_A, axis).view(-1, each).sum(1)
    return score / (score.norm() + 1e-8)


def masked(members: list[tuple[Any, int, int]], mask: Tensor) -> None:
    """The outputs of a block's units times the mask, at the projections whose rows they are."""
    for view, axis, each in members:
        if axis == 0:
            view.set("u", mask.repeat_interleave(each))


def block_of(name: str) -> tuple[str, int] | None:
    """(block, axis) of a projection; None for other sites."""
    found = BLOCKS.get(name.rpartition(".")[2])
    return None if found is None else (f"{name.rpartition('.')[0].rpartition('.')[0]}/{found[0]}", found[1])


def groups(views: list[Any], head: int) -> dict[str, list[tuple[Any, int, int]]]:
    """block -> (view, axis, numbers a unit): units are key/value groups (as many as k_proj has heads) or neurons. Blocks without all of their
    projections are left out."""
    found: dict[str, list[tuple[Any, int]]] = {}
    for view in views:
        if (where := block_of(view.name)) is not None:
            found.setdefault(where[0], []).append((view, where[1]))
    out = {}
    for block, members in found.items():
        sizes = {v.name.rpartition(".")[2]: v.base().shape[axis] for v, axis in members}
        if len(members) != (4 if block.endswith("attention") else 3):
            continue
        count = max(1, sizes["k_proj"] // head) if block.endswith("attention") else sizes["up_proj"]
        out[block] = [(v, axis, v.base().shape[axis] // count) for v, axis in members]
    return out
