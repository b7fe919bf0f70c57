"""FlyLoRA: a frozen sparse random projection is its own router over rank-one terms."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ...errors import SpecError
from ...ops import Affine, Map
from ...sites import Site
from ...spec import RULES, Declared, Method, Param, Tensors, method
from ..factors import positive
from ..routing import Slotted, of_vectors, sparse_rows


@method(paper="arXiv:2510.08396", claims=("no router to train; half of LoRA's parameters", "tasks merge better: random rows are near orthogonal"))
class FlyLoRA(Method):
    """y = W x + b + (alpha / r) B (z * 1_S), z = A x, S the k terms with the largest |z + d| ("signed": z + d). A (r, n) frozen: in every
    row floor(n k / r) numbers N(0, 1/r²) at random columns, drawn from `seed`, the same for all sites of one size and for all tasks. B
    (m, r) trained; d only chooses, and is moved by the rule balance.

    Start: B = 0: the base's first output. Count: m r. Not mergeable; tasks with one seed are merged by averaging B. Source: Zou et al. 2025;
    its two codes differ: |z + d| alone is in the stand-alone one, z + d in its PEFT. Here counts are compared with their mean (the
    stand-alone code compares them with k / r, so that nearly every bias falls). Trap: k = r is LoRA with a frozen A, and no router.

    >>> from deltaw.methods import FlyLoRA
    >>> {k: p.shape for k, p in FlyLoRA(r=8, k=2).params(10, 6).items()}
    {'A': (8, 6), 'B': (10, 8), 'd': (8,), 'c': (8,)}
    """

    r: int = 32
    k: int = 8
    alpha: float = 64.0
    u: float = 1e-3
    select: Literal["abs", "signed"] = "abs"
    seed: int = 0

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r, k=self.k)
        if self.k > self.r:
            raise SpecError(f"flylora chooses k <= r terms; found k = {self.k}, r = {self.r}")
        sparse = sparse_rows(max(1, n * self.k // self.r), 1.0 / self.r)
        moved = {name: Param((self.r,), train=False, ruled=True) for name in "dc"}
        return {"A": Param((self.r, n), sparse, train=False, seed=self.seed), "B": Param((m, self.r)), **moved}

    def declare(self, site: Site) -> Declared:
        return self.params(*of_vectors(site, "flylora"))

    def layer(self, L: Affine, p: Tensors) -> Map:
        def weigh(x: Tensor, z: Tensor) -> Tensor:
            score = z.detach() + p.d.to(z.dtype)
            chosen = (score.abs() if self.select == "abs" else score).topk(self.k, -1).indices
            return torch.zeros_like(score).scatter(-1, chosen, self.alpha / self.r)

        return Slotted(L, p.B, p.A, weigh, p.c if p.training else None)

    def rules(self) -> tuple[Any, ...]:
        return (RULES["balance"](self.u),)
