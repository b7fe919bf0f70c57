"""LLaMA-Adapter: zero-gated attention to a trained prompt in every layer."""

from __future__ import annotations

from typing import ClassVar

from ...ops import Affine, Map
from ...sites.attention import Seen
from ...spec import Declared, Method, Param, Tensors, method, normal, zeros
from ..factors import positive


@method(
    paper="arXiv:2303.16199",
    claims=("1.2 million parameters turn LLaMA-7B into a model that follows instructions, within an hour",),
)
class AdaptionPrompt(Method):
    """y = attention(x) + W_o (g softmax(q K_Pᵀ / sqrt(size)) V_P), K_P = W_k P and V_P = W_v P by the layer's own, frozen maps.

    P (v, d) and the gate g (1,) trained per layer; the softmax over the prompt is its own, q is taken behind the rotation,
    K_P is not rotated. Start: P ~ N(0, 1), g = 0. Trainable per layer: v d + 1. Does not merge.
    `Plan(AdaptionPrompt(), layers=range(2, 32))` puts it on the top 30 layers of 32; the default is all.
    Source: Zhang et al. 2023, as their code and PEFT have it (one gate per layer, no tanh; v = 10).
    Trap: the queries are computed twice, so it costs more than its parameters suggest.

    >>> from deltaw.methods import AdaptionPrompt
    >>> {k: p.shape for k, p in AdaptionPrompt(v=4).params(6, 6).items()}
    {'P': (4, 6), 'g': (1,)}
    """

    sites: ClassVar[str] = "attention"
    v: int = 10

    def params(self, m: int, n: int) -> Declared:
        positive(v=self.v)
        return {"P": Param((self.v, n), normal(1.0)), "g": Param((1,), zeros)}

    def layer(self, L: Affine, p: Tensors) -> Map:
        return Seen(p.P, p.g)
