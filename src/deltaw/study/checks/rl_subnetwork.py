"""Which weights an update really changes: the share it leaves alone, the overlap of two updates, and training of those
weights alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ShapeError, StateMismatch, TargetError, nearest
from ...methods.update.algebra import Adam, Draw, Frame, Sub, SubOptimizer, Unit

Weights = Mapping[str, Tensor]


def tolerance(dtype: torch.dtype) -> float:
    """The paper's 1e-5 for what models are stored in (float32 and coarser); smaller by its unit roundoff for a finer dtype."""
    return 1e-5 * min(1.0, torch.finfo(dtype).eps / torch.finfo(torch.float32).eps)


@torch.no_grad()
def changed(
    before: Weights, after: Weights, tol: float | None = None, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """{name: mask} of the entries with |after - before| > tol; dtype: both are rounded to it first.

    tol: by default `tolerance` of the coarser of the two dtypes. Source: arXiv:2505.11711 (reinforcement learning changes
    5 to 30 % of a model's bfloat16 entries). Trap: what counts as changed depends on the dtype: most small float32 steps
    are none in bfloat16, so round both models to the dtype in which they would be stored.
    """
    if set(before) != set(after):
        raise StateMismatch(f"the two models differ in names: {sorted(set(before) ^ set(after))[:5]}")
    masks = {}
    for name, old in before.items():
        a, b = (t.detach() if dtype is None else t.detach().to(dtype) for t in (old, after[name]))
        edge = max(tolerance(a.dtype), tolerance(b.dtype)) if tol is None else tol
        masks[name] = (b.double() - a.double()).abs() > edge
    return masks


def update_sparsity(
    before: Weights, after: Weights, tol: float | None = None, dtype: torch.dtype | None = None
) -> float:
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


@dataclass(frozen=True, eq=False)
class Entries(Frame):
    """A chosen set of entries, always the same: down gathers, up scatters, and adding writes to nothing else."""

    index: Tensor

    def refresh(self, G: Tensor, W: Tensor, old: dict[str, Tensor] | None, draw: Draw) -> dict[str, Tensor]:
        return {"index": self.index, "shape": torch.tensor(G.shape)}

    def down(self, f: dict[str, Tensor], G: Tensor) -> Tensor:
        return G.flatten()[f["index"]]

    def up(self, f: dict[str, Tensor], C: Tensor) -> Tensor:
        out = C.new_zeros(f["shape"].tolist())
        return out.view(-1).index_copy_(0, f["index"], C).view_as(out)

    def add(self, f: dict[str, Tensor], W: Tensor, C: Tensor, alpha: float) -> None:
        """Not W + up(C): adding zero turns -0.0 into 0.0."""
        flat = W.view(-1)
        flat[f["index"]] = (flat[f["index"]].to(C.dtype) + alpha * C).to(W.dtype)


def masked(
    model: nn.Module, masks: Weights, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, **kw: Any
) -> SubOptimizer:
    """An optimiser that moves the masked entries of a model's own weights by Adam and leaves every other bit alone:
    Sub(entries(mask), adam, drop). masks: {parameter name: mask}, as `changed` gives them; parameters without one stay.

    State: 2 numbers and one integer per entry. Source: arXiv:2505.11711, where training the subnetwork of a finished run
    alone gives almost the same model. Trap: no weight decay, which would move the complement; gradients of the
    named parameters are still whole matrices.
    """
    named = dict(model.named_parameters())
    units, used = [], {}
    for name, mask in masks.items():
        if name not in named:
            raise TargetError(f"the mask '{name}' belongs to no parameter of this model{nearest(name, named)}")
        if mask.shape != named[name].shape:
            raise ShapeError(f"'{name}': a mask of {tuple(named[name].shape)} was expected; found {tuple(mask.shape)}")
        index = mask.flatten().nonzero().flatten()
        if len(index):
            used[name] = named[name]
            units.append(Unit(name, Sub(Entries(index), Adam(betas, eps), every=0), {"W": named[name]}))
    if not units:
        raise TargetError("no entry is masked: there is nothing to train")
    return SubOptimizer(used, units, lr, **kw)
