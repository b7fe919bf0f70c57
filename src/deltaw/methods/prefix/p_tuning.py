"""P-tuning: soft tokens made by a small network."""

from __future__ import annotations

from typing import ClassVar

from ...ops import Affine, Map
from ...sites.prefix import Prefix
from ...spec import Declared, Method, Param, Tensors, kaiming, method, normal, uniform
from ..factors import positive


@method(
    paper="arXiv:2103.10385",
    start="none: the soft tokens are read from the first step on",
    claims=("steadier than discrete prompts, better on LAMA and SuperGLUE",),
)
class PTuning(Method):
    """The model reads [P; E(x)], P_i = W3 relu(W2 relu(W1 H_i + b1) + b2) + b3, v soft tokens in front of the input.

    H (v, d), W1 (h, d), b1 (h,), W2 (h, h), b2 (h,), W3 (d, h), b3 (d,), all trained: v d + h (2 d + h + 2) + d numbers.
    Start: H ~ N(0, 1), the layers as linear layers. h = 0 stands for the width d. Only P is needed once trained.
    Everything else is as in prompt tuning. Does not merge.
    Source: Liu et al. 2021; of its encoders the MLP, with PEFT's depth (the other one is a bidirectional LSTM).
    Trap: the paper also puts soft tokens inside a template; here, as in PEFT, all stand in front.

    >>> from deltaw.methods import PTuning
    >>> {k: p.shape for k, p in PTuning(v=4, h=3).params(48, 6).items() if k[0] in "HW"}
    {'H': (4, 6), 'W1': (3, 6), 'W2': (3, 3), 'W3': (6, 3)}
    """

    sites: ClassVar[str] = "prefix"
    v: int = 20
    h: int = 0

    def params(self, m: int, n: int) -> Declared:
        positive(v=self.v)
        h = self.h or n
        positive(h=h)
        return {
            "H": Param((self.v, n), normal(1.0)), "W1": Param((h, n), kaiming), "b1": Param((h,), uniform(n**-0.5)),
            "W2": Param((h, h), kaiming), "b2": Param((h,), uniform(h**-0.5)),
            "W3": Param((n, h), kaiming), "b3": Param((n,), uniform(h**-0.5)),
        }  # fmt: skip

    def layer(self, L: Affine, p: Tensors) -> Map:
        z = (p.H @ p.W1.mT + p.b1).relu()
        return Prefix(tokens=(z @ p.W2.mT + p.b2).relu() @ p.W3.mT + p.b3)
