"""(IA)³: learned rescaling of activations."""

from __future__ import annotations

from typing import Literal

from ...ops import Affine, Map, chain
from ...spec import Declared, Method, Param, Tensors, method, ones


@method(paper="arXiv:2205.05638", start="rounding", claims=("about 1/10000 of the parameters, better than in-context",))
class IA3(Method):
    """side "out": y = l ⊙ (W x + b), l (m,). side "in": y = W (l ⊙ x) + b, l (n,). l is trained, l = 1 at the start.

    The paper scales the outputs of keys and values and the input of the feed-forward's second layer: choose the side
    per pattern, Plan(IA3(), targets=["k_proj", "v_proj", "down_proj"], overrides={"down_proj": {"side": "in"}}).
    Trainable per site: m or n. Not a low-rank update. Source: Liu et al. 2022; as in HF PEFT, where
    `feedforward_modules` are the sites of side "in".
    Trap: the bias is scaled on the output side only. Several live adapters add up here; PEFT multiplies them. On a
    convolution "in" scales patch entries, one each; PEFT has one per channel.

    >>> from deltaw.methods import IA3
    >>> IA3().params(10, 6)["l"].shape, IA3(side="in").params(10, 6)["l"].shape
    ((10,), (6,))
    """

    side: Literal["out", "in"] = "out"

    def params(self, m: int, n: int) -> Declared:
        return {"l": Param((m if self.side == "out" else n,), ones)}

    def layer(self, L: Affine, p: Tensors) -> Map:
        if self.side == "in":
            return Affine(chain(L.op, p.l), L.bias)
        return Affine(chain(p.l, L.op), None if L.bias is None else p.l * L.bias)
