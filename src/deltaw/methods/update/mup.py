"""muP: learning rates that stay right when the model gets wider."""

from __future__ import annotations

from dataclasses import field
from typing import Any, Literal

import torch
from torch import nn

from ...errors import ShapeError, SpecError, nearest
from . import NOTHING, About, rescaled, update
from .adamw import AdamW


@update(paper="arXiv:2203.03466")
class MuP:
    """W (m, n), of base size (m0, n0), of which dims that are no width count as 1: Adam's rate is lr n0 / n for a matrix, lr for
    embeddings, biases and norms; with like="sgd" it is lr (n0 / n) (m / m0), and lr m / m0. Weight decay: divided by the same.

    base: {tensor: its sizes in the base model, None for a dim that is no width}, see `deltaw.base_shapes`; {}: the model is its
    own base, so this is `inner` alone. readouts: heads whose input is divided by n / n0, as `deltaw.mup` has it: Adam's rate is lr,
    SGD's lr n / n0; a head that is not among them has lr n0 / n. turned: tensors stored (n, m). inner: the rule
    whose rates these are, `like` says how its step grows with the gradient. Source: Yang et al. 2022, table 8, and mup's
    MuAdam and MuSGD. Trap: half of muP is the start and the head, which a rule cannot see: make it with `deltaw.mup(model, base)`.
    """

    base: dict = field(default_factory=dict)  # type: ignore[type-arg]
    readouts: tuple = ()  # type: ignore[type-arg]
    turned: tuple = ()  # type: ignore[type-arg]
    inner: object = AdamW()
    like: Literal["adam", "sgd"] = "adam"

    def factor(self, name: str, p: torch.Tensor, lookups: frozenset[str] = frozenset()) -> float:
        """What the rate of this tensor is multiplied by."""
        if not self.base:
            return 1.0
        if name not in self.base:
            raise SpecError(f"the base shapes have no tensor '{name}'{nearest(name, self.base)}")
        sizes = self.base[name]
        if len(sizes) != p.dim():
            raise ShapeError(f"{name}: {tuple(p.shape)} has other dims than its base shape {sizes}")
        grown = [None if b is None else d / b for d, b in zip(p.shape, sizes)]
        grown = grown[::-1] if name in self.turned else grown
        widths, adam = [k for k in grown if k is not None], self.like == "adam"
        if len(widths) > 2:
            raise SpecError(f"{name}: muP is about one or two dims that are widths; found {len(widths)}")
        if len(widths) == 2:
            return float(1 / widths[1] if adam else widths[0] / widths[1])
        reads = p.dim() > 1 and grown[0] is None and name not in lookups and name not in self.readouts
        return 1.0 if not widths else 1 / widths[0] if reads else 1.0 if adam else widths[0]

    def optimizer(
        self, named: dict[str, nn.Parameter], lr: float, about: About = NOTHING, **kw: Any
    ) -> torch.optim.Optimizer:
        def both(name: str, p: nn.Parameter) -> tuple[float, float]:
            f = self.factor(name, p, about.lookups)
            return f, 1 / f

        return rescaled(self.inner, both, named, lr, about, **kw)
