"""The bottleneck adapter in series with a block's output."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ...ops import Affine, Map, as_op
from ...spec import Declared, Method, Param, Start, Tensors, method, zeros
from ..bent import Activation, Bent
from ..factors import positive


def near_zero(start: Start, shape: tuple[int, ...]) -> Tensor:
    """N(0, 0.01²), cut at two standard deviations."""
    return start.normal(shape, 0.01).clamp(-0.02, 0.02)


@method(
    paper="arXiv:1902.00751",
    start="none: weights start near zero (0.01), so that the first output is near the base's",
    claims=("within 0.4 % of full fine-tuning on GLUE with 3.6 % of the parameters per task",),
)
class Bottleneck(Method):
    """h' = h + U act(D h + c) + b, h the output of a module. D (r, d), c (r,), U (d, r), b (d,), all trained.

    Start: D, U ~ N(0, 0.01²) cut at two deviations, c = b = 0. Trainable per site: 2 d r + r + d; 2 d r operations a token.
    Where is the plan's affair. Houlsby: behind the attention and the feed-forward layer, both before the residual sum:
    targets=["o_proj", "down_proj"] of a Llama, ["attention.output.dense", "output.dense"] of a BERT. Pfeiffer
    (arXiv:2005.00247): behind the feed-forward layer only, act="relu". Whole blocks: targets="all-blocks".
    Not linear: it neither merges nor converts. Source: Houlsby et al. 2019 (activation: ours, GELU).
    Trap: with `o_proj` as target h is that layer's output, not the residual stream behind it.

    >>> from deltaw.methods import Bottleneck
    >>> {k: p.shape for k, p in Bottleneck(r=2).params(6, 6).items()}
    {'D': (2, 6), 'c': (2,), 'U': (6, 2), 'b': (6,)}
    """

    sites: ClassVar[str] = "stream"
    r: int = 64
    act: Activation = "gelu"

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r)
        return {
            "D": Param((self.r, n), near_zero), "c": Param((self.r,), zeros),
            "U": Param((m, self.r), near_zero), "b": Param((m,), zeros),
        }  # fmt: skip

    def layer(self, L: Affine, p: Tensors) -> Map:
        return Bent(L, Affine(as_op(p.D), p.c), Affine(as_op(p.U), p.b), self.act)
