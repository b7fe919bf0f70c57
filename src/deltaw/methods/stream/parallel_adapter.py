"""The parallel adapter: a bottleneck beside a sub-layer."""

from __future__ import annotations

from typing import ClassVar

from ...ops import Affine, Map, as_op
from ...spec import Declared, Method, Param, Tensors, kaiming, method, zeros
from ..bent import Activation, Bent
from ..factors import positive


@method(
    paper="arXiv:2110.04366",
    claims=("beside the feed-forward layer better than in series with it, and than the same beside the attention",),
)
class ParallelAdapter(Method):
    """y = f(x) + s (U act(D x + c) + b), f a sub-layer with input x. D (r, d), c (r,), U (d, r), b (d,), all trained.

    Start: D ~ U(±1/sqrt d), U = c = b = 0 (their choice for it, as in LoRA). Trainable per site: 2 d r + r + d; 2 d r
    operations a token. Name the sub-layers: Plan(ParallelAdapter(), targets=["mlp"]); the default is every block.
    Not linear: it neither merges nor converts. Source: He et al. 2022 (r = 512, s = 4, ReLU).
    Trap: x is the first argument of f. Where a norm is inside f, the branch starts in front of it.

    >>> from deltaw.methods import ParallelAdapter
    >>> {k: p.shape for k, p in ParallelAdapter(r=2).params(6, 6).items()}
    {'D': (2, 6), 'c': (2,), 'U': (6, 2), 'b': (6,)}
    """

    sites: ClassVar[str] = "parallel"
    r: int = 512
    s: float = 4.0
    act: Activation = "relu"

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r)
        return {
            "D": Param((self.r, n), kaiming), "c": Param((self.r,), zeros),
            "U": Param((m, self.r), zeros), "b": Param((m,), zeros),
        }  # fmt: skip

    def layer(self, L: Affine, p: Tensors) -> Map:
        return Bent(L, Affine(as_op(p.D), p.c), Affine(self.s * as_op(p.U), self.s * p.b), self.act)
