"""Frames: coordinate systems for the gradient of one matrix. Each is three linear maps, down, up and move.

A frame is a frozen description; its numbers are a dict of tensors `f` that `refresh` makes and the optimiser keeps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ....errors import ShapeError, SpecError
from ....ops import random as rng
from .bases import Basis, Rsvd, Svd
from .draw import Draw
from .inners import Adam, Inner

Numbers = dict[str, Tensor]


class Frame:
    """down: gradient -> coordinates, up: coordinates -> matrix, move: old coordinates -> new ones."""

    orthonormal: ClassVar[bool] = True  # down(up(C)) = C
    exact: ClassVar[bool] = False  # up(down(G)) is G or 0 in each entry, bit by bit

    @property
    def one_sided(self) -> bool:
        """One axis of the matrix is cut, the other is left as it is."""
        return False

    def refresh(self, G: Tensor, W: Tensor, old: Numbers | None, draw: Draw) -> Numbers:
        raise NotImplementedError

    def down(self, f: Numbers, G: Tensor) -> Tensor:
        raise NotImplementedError

    def up(self, f: Numbers, C: Tensor) -> Tensor:
        raise NotImplementedError

    def move(self, old: Numbers, new: Numbers, C: Tensor) -> Tensor:
        """down_new . up_old; a frame that can do without the m x n matrix in between says so."""
        return self.down(new, self.up(old, C))

    def spread(self, old: Numbers, new: Numbers, V: Tensor) -> Tensor:
        """`move` with its coefficients squared: what it makes of independent coordinates' variances."""
        raise NotImplementedError

    def along(self, f: Numbers) -> int:
        """The axis of the coordinates that is cut, where the frame is one-sided: the other one is the matrix's own."""
        raise NotImplementedError

    def add(self, f: Numbers, W: Tensor, C: Tensor, alpha: float) -> None:
        """W <- W + alpha up(C)."""
        W.add_(self.up(f, C).to(W), alpha=alpha)

    def sizes(self, m: int, n: int) -> tuple[tuple[int, ...], int]:
        """For an m x n matrix: the shape of the coordinates, and the numbers of floating-point state of the frame."""
        raise NotImplementedError

    def post(self, f: Numbers, G: Tensor, C: Tensor, lr: float) -> None:
        """An online update of the frame, after its use."""


@dataclass(frozen=True)
class Whole(Frame):
    """The matrix itself: an inner optimiser without a subspace."""

    exact: ClassVar[bool] = True

    def refresh(self, G: Tensor, W: Tensor, old: Numbers | None, draw: Draw) -> Numbers:
        return {}

    def down(self, f: Numbers, G: Tensor) -> Tensor:
        return G

    def up(self, f: Numbers, C: Tensor) -> Tensor:
        return C

    def spread(self, old: Numbers, new: Numbers, V: Tensor) -> Tensor:
        return V

    def sizes(self, m: int, n: int) -> tuple[tuple[int, ...], int]:
        return (m, n), 0


def width(r: int | float, total: int) -> int:
    """A rank, or a share of the dimension (a float up to 1)."""
    if r <= 0:
        raise SpecError(f"a rank is a positive number of directions or a share of them; found {r}")
    return max(1, round(r * total)) if isinstance(r, float) and r <= 1 else min(int(r), total)


@dataclass(frozen=True)
class Side(Frame):
    """P (d x r) with orthonormal columns. left: C = Pᵀ G, up = P C; right: C = G P, up = C Pᵀ; auto: the smaller dimension
    is the one that is cut (m >= n: right), so P is the smaller matrix; reverse: the larger one."""

    r: int | float
    basis: Basis = Rsvd()
    side: Literal["auto", "left", "right", "reverse"] = "auto"

    def right(self, shape: tuple[int, ...]) -> bool:
        auto = shape[0] >= shape[1]
        return {"right": True, "left": False, "auto": auto, "reverse": not auto}[self.side]

    @property
    def one_sided(self) -> bool:
        return True

    def along(self, f: Numbers) -> int:
        return 1 if "right" in f else 0

    def sizes(self, m: int, n: int) -> tuple[tuple[int, ...], int]:
        d = n if self.right((m, n)) else m
        r = width(self.r, d)
        return ((m, r) if self.right((m, n)) else (r, n)), d * r

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

    def spread(self, old: Numbers, new: Numbers, V: Tensor) -> Tensor:
        return (
            V @ (old["right"].mT @ new["right"]).square()
            if "right" in old
            else (new["left"].mT @ old["left"]).square() @ V
        )

    def add(self, f: Numbers, W: Tensor, C: Tensor, alpha: float) -> None:
        pair = (C, f["right"].mT) if "right" in f else (f["left"], C)
        if W.dtype == C.dtype:
            W.addmm_(*pair, alpha=alpha)
        else:
            W.add_((pair[0] @ pair[1]).to(W), alpha=alpha)


@dataclass(frozen=True)
class TwoSided(Frame):
    """P (m x r) and Q (n x r): C = Pᵀ G Q (r x r), up = P C Qᵀ."""

    r: int | float
    basis: Basis = Rsvd()

    def refresh(self, G: Tensor, W: Tensor, old: Numbers | None, draw: Draw) -> Numbers:
        r, old = width(self.r, min(G.shape)), old or {}
        return {
            "left": self.basis(G, r, old.get("left"), replace(draw, name=f"{draw.name}.left")).contiguous(),
            "right": self.basis(G.mT, r, old.get("right"), replace(draw, name=f"{draw.name}.right")).contiguous(),
        }

    def down(self, f: Numbers, G: Tensor) -> Tensor:
        return f["left"].mT @ G @ f["right"]

    def up(self, f: Numbers, C: Tensor) -> Tensor:
        return f["left"] @ C @ f["right"].mT

    def move(self, old: Numbers, new: Numbers, C: Tensor) -> Tensor:
        return (new["left"].mT @ old["left"]) @ C @ (old["right"].mT @ new["right"])

    def spread(self, old: Numbers, new: Numbers, V: Tensor) -> Tensor:
        return (new["left"].mT @ old["left"]).square() @ V @ (old["right"].mT @ new["right"]).square()

    def sizes(self, m: int, n: int) -> tuple[tuple[int, ...], int]:
        r = width(self.r, min(m, n))
        return (r, r), (m + n) * r


@dataclass(frozen=True)
class HeadShared(Side):
    """A frame on the right that comes from the rows of one of `heads` equal row blocks, drawn at each refresh, and serves them all."""

    side: Literal["auto", "left", "right", "reverse"] = "right"
    heads: int = 1

    def refresh(self, G: Tensor, W: Tensor, old: Numbers | None, draw: Draw) -> Numbers:
        if G.shape[0] % self.heads:
            raise ShapeError(f"{G.shape[0]} rows do not divide into {self.heads} heads")
        head = G.chunk(self.heads)[int(draw.choose(1, self.heads, G, "head"))]
        P = self.basis(head.mT, width(self.r, min(head.shape)), None if old is None else old["right"], draw)
        return {"right": P.contiguous()}

    def sizes(self, m: int, n: int) -> tuple[tuple[int, ...], int]:
        r = width(self.r, min(m // self.heads, n))
        return (m, r), n * r


@lru_cache(maxsize=2)  # down, up and what is outside ask for the same one within a step, a move for two
def _sketch(key: int, d: int, r: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return rng.normal((d, r), key, r**-0.5).to(device, dtype)


@dataclass(frozen=True)
class Sketch(Side):
    """As `Side` with P ~ N(0, 1/r), E[up(down(G))] = G, of which only the key is kept: P is made again where it is used.

    up(down) is no projection: it scatters by about d / r |G|². The same numbers on every device. On one CPU core the making
    takes about as long as a product with G.
    """

    orthonormal: ClassVar[bool] = False

    def refresh(self, G: Tensor, W: Tensor, old: Numbers | None, draw: Draw) -> Numbers:
        right = self.right(tuple(G.shape))
        d = G.shape[1 if right else 0]
        return {"sketch": torch.tensor([draw.key("sketch"), d, width(self.r, d), right])}

    def _made(self, f: Numbers, like: Tensor) -> Numbers:
        key, d, r, right = f["sketch"].tolist()
        return {"right" if right else "left": _sketch(key, d, r, like.dtype, like.device)}

    def along(self, f: Numbers) -> int:
        return int(f["sketch"][3])

    def down(self, f: Numbers, G: Tensor) -> Tensor:
        return super().down(self._made(f, G), G)

    def up(self, f: Numbers, C: Tensor) -> Tensor:
        return super().up(self._made(f, C), C)

    def move(self, old: Numbers, new: Numbers, C: Tensor) -> Tensor:
        return super().move(self._made(old, C), self._made(new, C), C)

    def spread(self, old: Numbers, new: Numbers, V: Tensor) -> Tensor:
        return super().spread(self._made(old, V), self._made(new, V), V)

    def add(self, f: Numbers, W: Tensor, C: Tensor, alpha: float) -> None:
        super().add(self._made(f, C), W, C, alpha)

    def sizes(self, m: int, n: int) -> tuple[tuple[int, ...], int]:
        return super().sizes(m, n)[0], 0


@dataclass(frozen=True)
class Online(Side):
    """A frame that learns: from the second step on, after its use, P moves by one step of `by` (rate `rate`, times lr / lr0; decoupled
    `decay`) on |P Pᵀ Ĝ - Ĝ|², Ĝ = G / |G|. gradient: 2 (P (PᵀMP) + MP (PᵀP) - 2 MP), M = Ĝ Ĝᵀ. P is orthonormal at the start only."""

    basis: Basis = Svd()
    by: Inner = Adam()
    rate: float = 1 / 200
    decay: float = 0.01
    lr0: float = 0.0
    orthonormal: ClassVar[bool] = False

    def post(self, f: Numbers, G: Tensor, C: Tensor, lr: float) -> None:
        side = next(k for k in ("right", "left") if k in f)
        if "begun" not in f:  # the SVD of this very gradient was the frame
            f["begun"] = torch.ones(())
            return
        P, s = f[side], {k.removeprefix("by."): t for k, t in f.items() if k.startswith("by.")}
        S = (G if side == "right" else G.mT) / G.norm().clamp_min(torch.finfo(G.dtype).tiny)
        SP = S @ P
        MP, inside = S.mT @ SP, SP.mT @ SP
        U, gain = self.by(2 * (P @ inside + MP @ (P.mT @ P) - 2 * MP), s)
        rate = self.rate * (lr / self.lr0 if self.lr0 else 1.0)
        f[side] = P * (1 - rate * self.decay) - rate * gain * U
        f |= {f"by.{k}": t for k, t in s.items()}

    def sizes(self, m: int, n: int) -> tuple[tuple[int, ...], int]:
        shape, own = super().sizes(m, n)
        d = n if self.right((m, n)) else m
        return shape, own + self.by.floats((d, own // d))


@dataclass(frozen=True)
class Coords(Frame):
    """Chosen columns, rows or entries: down gathers, up scatters. density: the share that is chosen, anew at every refresh,
    at random. State: one integer per chosen thing."""

    exact: ClassVar[bool] = True
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

    def spread(self, old: Numbers, new: Numbers, V: Tensor) -> Tensor:
        return self.move(old, new, V)  # ones and zeros

    @property
    def one_sided(self) -> bool:
        return self.what != "entries"

    def along(self, f: Numbers) -> int:
        return {"columns": 1, "rows": 0}[self.what]

    def sizes(self, m: int, n: int) -> tuple[tuple[int, ...], int]:
        k = round(self.density * {"columns": n, "rows": m, "entries": m * n}[self.what])
        return {"columns": (m, k), "rows": (k, n), "entries": (k,)}[self.what], 0
