"""Declarations several methods share (no method imports another)."""

from __future__ import annotations

from ..errors import ShapeError, SpecError
from ..spec import Declared, Param, by_kind, kaiming, normal, zeros

# LoRA's start: down ~ U(±1/sqrt fan-in), up = 0; on an embedding, where down is the looked-up table, down = 0, up ~ N(0, 1)
down = by_kind(kaiming, embedding=zeros)
up = by_kind(zeros, embedding=normal(1.0))


def pair(m: int, n: int, r: int) -> Declared:
    """LoRA's two factors: A (r, n) and B (m, r), started as `down` and `up`."""
    positive(r=r)
    return {"A": Param((r, n), down), "B": Param((m, r), up)}


def divides(what: str, part: int, **sizes: int) -> None:
    """Raise the named error unless `part` divides every size."""
    for name, size in sizes.items():
        if part < 1 or size % part:
            raise ShapeError(f"{what} = {part} must divide {name} = {size}")


def positive(**sizes: int) -> None:
    """Raise the named error unless every size is at least 1."""
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise SpecError(f"{name} must be a whole number of at least 1; found {size}")
