"""Frames: coordinate systems for the gradient of one matrix. Each is three linear maps, down, up and move.

A frame is a frozen description; its numbers are a dict of tensors `f` that `refresh` makes and the optimiser keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ....errors import SpecError
from .bases import Basis, Rsvd
from .draw import Draw

Numbers = dict[str, Tensor]


class Frame:
    """down: gradient -> coordinates, up: coordinates -> matrix, move: old coordinates -> new ones."""

    def refresh(self, G: Tensor, W: Tensor, old: Numbers | None, draw: Draw) -> Numbers:
        raise NotImplementedError

    def down(self, f: Numbers, G: Tensor) -> Tensor:
        raise NotImplementedError

    def up(self, f: Numbers, C: Tensor) -> Tensor:
        raise NotImplementedError

    def move(self, old: Numbers, new: Numbers, C: Tensor) -> Tensor:
        """down_new . up_old; a frame that can do without the m x n matrix in between says so."""
        return self.down(new, self.up(old, C))

    def add(self, f: Numbers, W: Tensor, C: Tensor, alpha: float) -> None:
        """W <- W + alpha up(C)."""
        W.add_(self.up(f, C).to(W), alpha=alpha)

    def post(self, f: Numbers, G: Tensor, C: Tensor, lr: float) -> None:
        """An online update of the frame, after its use."""


def width(r: int | float, total: int) -> int:
    """A rank, or a share of the dimension (a float below 1)."""
    if r <= 0:
        raise SpecError(f"a rank is a positive number of directions or a share of them; found {r}")
    return max(1, round(r * total)) if isinstance(r, float) and r < 1 else min(int(r), total)


@dataclass(frozen=True)
class Side(Frame):
    """P (d x r) with orthonormal columns. left: C = Pᵀ G, up = P C; right: C = G P, up = C Pᵀ; auto: the smaller dimension
    is the one that is cut (m >= n: right), so P is the smaller matrix."""

    r: int | float
    basis: Basis = Rsvd()
    side: Literal["auto", "left", "right"] = "auto"

    def right(self, shape: tuple[int, ...]) -> bool:
        return self.side == "right" or (self.side == "auto" and shape[0] >= shape[1])

    def refresh(self, G: Tensor, W: Tensor, old: Numbers | None, draw: Draw) -> Numbers:
        right = self.right(tuple(G.shape))
        M = G.mT if right else G
        P = self.basis(M, width(self.r, M.shape[0]), None if old is None else next(iter(old.values())), draw)
        return {"right" if right else "left": P.contiguous()}

    def down(self, f: Numbers, G: Tensor) -> Tensor:
        return G @ f["right"] if "right" in f else f["left"].mT @ G

    def up(self, f: Numbers, C: Tensor) -> Tensor:
        return C @ f["right"].mT if "right" in f else f["left"] @ C

    def move(self, old: Numbers, new: Numbers, C: Tensor) -> Tensor:
        return C @ (old["right"].mT @ new["right"]) if "right" in old else (new["left"].mT @ old["left"]) @ C

    def add(self, f: Numbers, W: Tensor, C: Tensor, alpha: float) -> None:
        pair = (C, f["right"].mT) if "right" in f else (f["left"], C)
        if W.dtype == C.dtype:
            W.addmm_(*pair, alpha=alpha)
        else:
            W.add_((pair[0] @ pair[1]).to(W), alpha=alpha)


@dataclass(frozen=True)
class Coords(Frame):
    """Chosen columns, rows or entries: down gathers, up scatters. density: the share that is chosen, anew at every refresh,
    at random. State: one integer per chosen thing."""

    density: float
    what: Literal["columns", "rows", "entries"] = "columns"

    def refresh(self, G: Tensor, W: Tensor, old: Numbers | None, draw: Draw) -> Numbers:
        total = {"columns": G.shape[1], "rows": G.shape[0], "entries": G.numel()}[self.what]
        return {"index": draw.choose(round(self.density * total), total, G), "shape": G.new_tensor(G.shape).long()}

    def down(self, f: Numbers, G: Tensor) -> Tensor:
        if self.what == "entries":
            return G.flatten()[f["index"]]
        return G.index_select(1 if self.what == "columns" else 0, f["index"])

    def up(self, f: Numbers, C: Tensor) -> Tensor:
        out = C.new_zeros(*f["shape"].tolist())
        if self.what == "entries":
            return out.view(-1).index_copy_(0, f["index"], C).view_as(out)
        return out.index_copy_(1 if self.what == "columns" else 0, f["index"], C)
