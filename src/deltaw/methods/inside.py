"""What wrappers ask of the method inside them, and the errors that say why it cannot be given (no method imports another)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import SpecError
from ..ops import Affine, Map, delta, scale
from ..spec import Declared, Method, Param, Signal, Start, Tensors, kaiming, layers_of
from .gating import Gated


def tensors(word: str, inner: Method, where: Any) -> Declared:
    """The tensors of `inner` at a site, or for a shape (m, n), if it is a change of a weight."""
    if inner.sites != "weight":
        raise SpecError(f"{word} wraps a change of a weight; {inner.key} acts on a {inner.sites} and has none. Use {inner.key} alone")
    return inner.params(*where) if isinstance(where, tuple) else inner.declare(where)


def linear(word: str, inner: Method, where: Any, *own: str, gated: bool = False) -> Declared:
    """The same, if that change is linear (gated: or is at some of the tokens); `own` are the names of the wrapper's tensors."""
    declared = tensors(word, inner, where)
    if mixing := [m.key for m in layers_of(inner) if not m.pointwise]:
        raise SpecError(
            f"{word} wraps a linear change of a weight; that of {mixing[0]} depends on the whole input, as a token's output "
            "looks at its neighbours too, so no matrix equals it"
        )
    asks = {k: p.name for k, p in declared.items() if isinstance(p, Signal)}
    if signals := [k for k, name in asks.items() if not (gated and name.startswith("positions "))]:
        raise SpecError(
            f"{word} wraps a linear change of a weight; that of {inner.key} depends on the whole input (its '{signals[0]}'), "
            "so there is no matrix whose rows, or whose input, could be told apart"
        )
    if taken := sorted(set(own) & set(declared)):
        twice = any(m.key == word for m in layers_of(inner))
        why = f"a {word} inside a {word} adds nothing" if twice else "one of them has to be called something else"
        raise SpecError(f"{word} around {inner!r}: both have a tensor '{taken[0]}'; {why}")
    return declared


def drawn(p: Param) -> Param:
    """The same tensor; where its start is all zeros, numbers of a linear layer's size instead."""

    def fill(start: Start, shape: tuple[int, ...]) -> Tensor:
        t = p.init(start, shape)
        return t if t.any() else kaiming(start, shape or (1,)).reshape(shape)

    return p if getattr(p.init, "last", False) else replace(p, init=fill)


def around(word: str, inner: Method, L: Affine, p: Tensors, change: Callable[[Affine], Affine]) -> Map:
    """The layer of `inner`, changed; where it acts at some of the tokens, the changed one acts there."""
    M = inner.layer(L, p)
    new = change(linear_part(word, inner, M))
    return Gated(L, new, M.here) if isinstance(M, Gated) else new


def linear_part(word: str, inner: Method, M: Map) -> Affine:
    return M.L if isinstance(M, Gated) and isinstance(M.L, Affine) else checked(word, inner, M)


def scaled(L: Affine, V: Affine, s: Tensor) -> Affine:
    """L with s times the moves of weight and bias that lead to V."""
    op = L.op + scale(s, delta(V.op, L.op))
    if V.bias is L.bias:
        return Affine(op, L.bias)
    return Affine(op, s * V.bias if L.bias is None else L.bias + s * (V.bias - L.bias))


def is_base(word: str, inner: Method, start: Start, moving: Collection[str]) -> bool:
    """Does `inner` leave the base as it is, up to rounding? What rules move (a ramp from 0) counts as if they had."""
    here = {k: t.new_ones(t.shape) if k in moving and t.is_floating_point() else t for k, t in vars(start.p).items() if k != "training"}
    V = linear_part(word, inner, inner.layer(Affine(start.W), Tensors(**here)))
    x = start.normal((2, start.W.shape[1]), 1.0).to(start.W.like)
    noise = min(1e-4, 64 * torch.finfo(x.dtype).eps)
    return V.bias is None and bool(delta(V.op, start.W)(x).norm() < noise * start.W(x).norm())


def affine(word: str, inner: Method, L: Affine, p: Tensors) -> Affine:
    """The layer of `inner`, which has to be linear."""
    return checked(word, inner, inner.layer(L, p))


def checked(word: str, inner: Method, V: Map) -> Affine:
    if not isinstance(V, Affine):
        raise SpecError(f"{word} wraps a linear change of a weight; {inner.key} gives a {type(V).__name__}, which is no matrix")
    return V
