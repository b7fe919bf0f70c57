"""OSF: W's top singular block is kept, its complement is trained inside the complement."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import ShapeError
from ...ops import Op, chain
from ...spec import Declared, Method, Param, Tensors, last, method


class Outside(torch.autograd.Function):
    """t itself, whose gradient g is freed of the columns of Q: (I - Q Qᵀ) g."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, Q: Tensor) -> Tensor:
        ctx.save_for_backward(Q)
        return t.view_as(t)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:  # type: ignore[override]
        (Q,) = ctx.saved_tensors
        return g - Q @ (Q.mT @ g), None


@method(paper="arXiv:2504.07097", start="rounding", claims=("above O-LoRA on sequences of tasks",))
class OSF(Method):
    """W' = Uh diag(Sh) Vh + U diag(S) V, of the SVD of W: the `top` largest triplets frozen, the other k trained.

    U (m, k), S (k,), V (k, n), k = min(m, n) - top; top = None keeps half. Training rule: gradients of U and V lose what
    lies in the frozen block, dU - Uh Uhᵀ dU and dV - dV Vhᵀ Vh, in the backward pass itself.
    Start: the base up to rounding. Count: k (m + n + 1). W is not used after the start: min(m, n)(m + n) operations a token.
    Source: Nayak et al. 2025 ("Sculpting Subspaces"); default as in HF PEFT (the paper gives layers their own `top`).
    Trap: an optimiser that scales entrywise (Adam) lets U drift into the frozen block in spite of the projection.

    >>> from deltaw.methods import OSF
    >>> {k: p.shape for k, p in OSF(top=4).params(10, 6).items() if p.train}
    {'U': (10, 2), 'S': (2,), 'V': (2, 6)}
    """

    top: int | None = None

    def params(self, m: int, n: int) -> Declared:
        size, t = min(m, n), min(m, n) // 2 if self.top is None else self.top
        if not 0 < t < size:
            raise ShapeError(f"osf keeps 0 < top < {size} of the singular triplets of a {m} x {n} weight; found top = {t}")

        def part(which: int, kept: slice) -> Any:
            return last(lambda start, _: start.svd(size)[which][(slice(None), kept) if which == 0 else kept])

        shapes = {"Uh": (m, t), "Sh": (t,), "Vh": (t, n), "U": (m, size - t), "S": (size - t,), "V": (size - t, n)}
        halves = [slice(0, t)] * 3 + [slice(t, size)] * 3
        return {name: Param(shapes[name], part(i % 3, halves[i]), i > 2) for i, name in enumerate(shapes)}

    def weight(self, W: Op, p: Tensors) -> Op:
        U, Vt = Outside.apply(p.U, p.Uh), Outside.apply(p.V.mT, p.Vh.mT)  # type: ignore[no-untyped-call]
        return chain(p.Uh, p.Sh, p.Vh) + chain(U, p.S, Vt.mT)
