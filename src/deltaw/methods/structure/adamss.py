"""AdaMSS: groups of similar rows of W, each with a small change inside W's principal input directions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from ...errors import ShapeError
from ...ops import Affine, Op, chain
from ...sites import Site
from ...spec import Declared, Method, Param, Start, Tensors, last, method
from ..clusters import beside, grouped_rows, main_directions, principal


@method(paper="OpenReview:8ZdWmpYxT0", start="rounding", claims=("above LoRA on ViT-Large with 15.4 % of its parameters",))
class AdaMSS(Method):
    """(dW | db)[G_k] = B_k A_k V for K groups G_k of rows, i.e. row i gets B_i A_group(i) V. y = (W + dW) x + b + db.

    Frozen: V (R, n + 1), right singular vectors of [W | b]; group (m,), the group of every row, by k-means of the rows of U.
    Trained: A (K, rk, R), started as the first right singular vectors of each group's rows of U; B (m, rk) = 0.
    Start: the base up to rounding of the bias. Count: K rk R + m rk. Exact LoRA rank of dW: K rk.
    Source: HF PEFT 0.21.2, whose randomised SVD and k-means give other groups. Trap: the bias changes too.

    >>> from deltaw.methods import AdaMSS
    >>> {k: p.shape for k, p in AdaMSS(R=4, K=3).params(10, 6).items() if p.train}
    {'A': (3, 1, 4), 'B': (10, 1)}
    """

    R: int = 100
    K: int = 5
    rk: int = 1

    def params(self, m: int, n: int, bias: Tensor | None = None) -> Declared:
        if not (1 <= self.R <= min(m, n) and 1 <= self.K <= m and 1 <= self.rk <= self.R):
            raise ShapeError(f"adamss at a {m} x {n} weight needs rk <= R <= {min(m, n)} and K <= {m}; found {self}")

        def rows(start: Start) -> Tensor:  # of U
            return normalize(beside(start.dense(), bias) @ start.p.V.mT, dim=0)

        V = Param((self.R, n + (bias is not None)), last(lambda s, z: principal(beside(s.dense(), bias), z[0])), False)
        group = Param((m,), last(lambda s, _: grouped_rows(rows(s), s.choose(self.K, m))), False, dtype=torch.int64)
        A = Param((self.K, self.rk, self.R), last(lambda s, shape: main_directions(rows(s), s.p.group, *shape[:2])))
        return {"V": V, "group": group, "A": A, "B": Param((m, self.rk))}

    def declare(self, site: Site) -> Declared:
        return self.params(*site.shape, site.leaf().bias)

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + chain(self.small(p), p.V[:, : W.shape[1]])

    def small(self, p: Tensors) -> Op:
        mine = one_hot(p.group, self.K).to(p.B.dtype)
        return chain((mine[:, :, None] * p.B[:, None]).flatten(1), p.A.flatten(0, 1))

    def layer(self, L: Affine, p: Tensors) -> Affine:
        n, bias = L.op.shape[1], L.bias
        if bias is not None and p.V.shape[1] > n:
            bias = bias + self.small(p)(p.V[:, n])
        return Affine(self.weight(L.op, p), bias)
