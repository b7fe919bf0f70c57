"""Which weights an update really changes: the share it leaves alone, and the overlap of two updates."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...errors import StateMismatch

Weights = Mapping[str, Tensor]


@torch.no_grad()
def changed(before: Weights, after: Weights, tol: float = 1e-5, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """{name: mask} of the entries with |after - before| > tol; dtype: both are rounded to it first.

    Source: arXiv:2505.11711 (reinforcement learning changes 5 to 30 % of a model's bfloat16 entries). Trap: what counts as
    changed depends on the dtype: most small float32 steps are none in bfloat16.
    """
    if set(before) != set(after):
        raise StateMismatch(f"the two models differ in names: {sorted(set(before) ^ set(after))[:5]}")
    masks = {}
    for name, old in before.items():
        a, b = (t.detach() if dtype is None else t.detach().to(dtype) for t in (old, after[name]))
        masks[name] = (b.double() - a.double()).abs() > tol
    return masks


def update_sparsity(before: Weights, after: Weights, tol: float = 1e-5, dtype: torch.dtype | None = None) -> float:
    """The share of entries that an update leaves alone: 1 for the same model twice."""
    return _share_left(changed(before, after, tol, dtype))


def _share_left(masks: Mapping[str, Tensor]) -> float:
    total = sum(m.numel() for m in masks.values())
    return 1.0 - sum(int(m.sum()) for m in masks.values()) / total if total else 1.0


def mask_overlap(a: Weights, b: Weights) -> dict[str, float]:
    """Of two updates' masks: the common part as a share of each, and what two independent ones would have.

    `of_a` and `of_b` are |a and b| / |a| and / |b|; by chance they would be the densities of the other: `chance_of_a`,
    `chance_of_b`.
    """
    total = sum(m.numel() for m in a.values())
    both = sum(int((a[k].bool() & b[k].bool()).sum()) for k in a)
    na, nb = (sum(int(m.bool().sum()) for m in masks.values()) for masks in (a, b))
    return {
        "of_a": both / na if na else 0.0,
        "of_b": both / nb if nb else 0.0,
        "chance_of_a": nb / total if total else 0.0,
        "chance_of_b": na / total if total else 0.0,
    }


@torch.no_grad()
def kept_by(delta: Tensor, r: int, share: float) -> dict[str, float]:
    """The part of |delta|_F that its best rank-r matrix keeps, and that its largest `share` of entries keeps.

    An update that is sparse but of full rank loses norm in the first and nothing in the second.
    """
    d = delta.detach().double()
    square = d.square().flatten().sort(descending=True).values
    spectrum = torch.linalg.svdvals(d).square()
    whole = float(square.sum())
    if whole == 0:
        return {"rank": 1.0, "sparse": 1.0}
    return {
        "rank": (float(spectrum[:r].sum()) / whole) ** 0.5,
        "sparse": (float(square[: round(share * square.numel())].sum()) / whole) ** 0.5,
    }
