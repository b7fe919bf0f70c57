"""What wrappers ask of the method inside them, and the errors that say why it cannot be given (no method imports another)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from ..errors import SpecError
from ..ops import Affine, Map
from ..spec import Declared, Method, Param, Signal, Start, Tensors, kaiming


def tensors(word: str, inner: Method, where: Any) -> Declared:
    """The tensors of `inner` at a site, or for a shape (m, n), if it is a change of a weight."""
    if inner.sites != "weight":
        raise SpecError(f"{word} wraps a change of a weight; {inner.key} acts on a {inner.sites} and has none. Use {inner.key} alone")
    return inner.params(*where) if isinstance(where, tuple) else inner.declare(where)


def linear(word: str, inner: Method, where: Any, *own: str, gated: bool = False) -> Declared:
    """The same, if that change is linear (gated: or is at some of the tokens); `own` are the names of the wrapper's tensors."""
    declared = tensors(word, inner, where)
    asks = {k: p.name for k, p in declared.items() if isinstance(p, Signal)}
    if signals := [k for k, name in asks.items() if not (gated and name.startswith("positions "))]:
        raise SpecError(
            f"{word} wraps a linear change of a weight; that of {inner.key} depends on the whole input (its '{signals[0]}'), "
            "so there is no matrix whose rows, or whose input, could be told apart"
        )
    if taken := sorted(set(own) & set(declared)):
        raise SpecError(f"{word} around {inner!r}: both have a tensor '{taken[0]}'; a {word} inside a {word} adds nothing")
    return declared


def drawn(p: Param) -> Param:
    """The same tensor; where its start is all zeros, numbers of a linear layer's size instead."""

    def fill(start: Start, shape: tuple[int, ...]) -> Tensor:
        t = p.init(start, shape)
        return t if t.any() else kaiming(start, shape or (1,)).reshape(shape)

    return p if getattr(p.init, "last", False) else replace(p, init=fill)


def affine(word: str, inner: Method, L: Affine, p: Tensors) -> Affine:
    """The layer of `inner`, which has to be linear."""
    return checked(word, inner, inner.layer(L, p))


def checked(word: str, inner: Method, V: Map) -> Affine:
    if not isinstance(V, Affine):
        raise SpecError(f"{word} wraps a linear change of a weight; {inner.key} gives a {type(V).__name__}, which is no matrix")
    return V
