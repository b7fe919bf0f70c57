"""Trainable tokens: only chosen rows of an embedding table are trained."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import SpecError
from ...ops import Op, chain
from ...spec import Declared, Method, Param, Start, Tensors, method
from ..pick import Pick


@method(paper="(HF PEFT, TrainableTokens)")
class TrainableTokens(Method):
    """E' = E with the rows of the given token ids trained: as an operator (d, V), W' = W + columns (v - W[:, ids]).

    v (k, d), started as the base's rows; the base's rows enter as the frozen v0. Count: k d. What
    `Plan(token_rows={"embed_tokens": [...]})` uses. Trap: a tied head sees the new rows only if it is adapted too.

    >>> from deltaw.methods import TrainableTokens
    >>> TrainableTokens(ids=(3, 5)).params(8, 100)["v"].shape
    (2, 8)
    """

    ids: tuple[int, ...] = (0,)

    def params(self, m: int, n: int) -> Declared:
        if not self.ids or min(self.ids) < 0 or max(self.ids) >= n or len(set(self.ids)) < len(self.ids):
            raise SpecError(f"token ids must be different and within 0..{n - 1}; found {self.ids}")
        where = torch.tensor(sorted(self.ids))

        def rows(start: Start, _: tuple[int, ...]) -> Tensor:
            return start.W.cols(where.to(start.W.like.device)).detach()

        i = Param((len(where),), lambda *_: where, train=False, dtype=torch.int64)
        return {"v": Param((len(where), m), rows), "v0": Param((len(where), m), rows, train=False), "i": i}

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + chain((p.v - p.v0).mT, Pick(p.i, W.shape[1], p.v))
