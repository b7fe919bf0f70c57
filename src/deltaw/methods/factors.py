"""Declarations several methods share (no method imports another)."""

from __future__ import annotations

from ..errors import ShapeError, SpecError
from ..spec import Declared, Param, by_kind, kaiming, normal, zeros


def pair(m: int, n: int, r: int) -> Declared:
    """LoRA's two factors: A (r, n) ~ U(±1/sqrt n), B (m, r) = 0; on an embedding A = 0, B ~ N(0, 1)."""
    if r < 1:
        raise SpecError(f"a rank must be at least 1; found {r}")
    return {
        "A": Param((r, n), by_kind(kaiming, embedding=zeros)),
        "B": Param((m, r), by_kind(zeros, embedding=normal(1.0))),
    }


def divides(what: str, part: int, **sizes: int) -> None:
    """Raise the named error unless `part` divides every size."""
    for name, size in sizes.items():
        if part < 1 or size % part:
            raise ShapeError(f"{what} = {part} must divide {name} = {size}")
