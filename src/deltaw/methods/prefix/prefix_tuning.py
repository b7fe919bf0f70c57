"""Prefix tuning: trained keys and values in front of every layer's own."""

from __future__ import annotations

from typing import ClassVar

from ...ops import Affine, Map
from ...sites.prefix import Prefix
from ...spec import Declared, Method, Param, Tensors, kaiming, method, normal, uniform
from ..factors import positive


@method(
    paper="arXiv:2101.00190",
    start="none: the prefix is attended to from the first step on",
    claims=("0.1 % of the parameters, comparable with fine-tuning on table-to-text, better with few examples",),
)
class PrefixTuning(Method):
    """Every layer attends to v more places. Row i of the prefix, K_1 V_1 K_2 V_2 …, is W2 tanh(W1 E_i + b1) + b2.

    E (v, d), W1 (h, d), b1 (h,), W2 (m, h), b2 (m,), m = 2 · layers · kv-heads · head size. Without the reparametrisation
    (h = 0): E (v, m) itself. Start: E ~ N(0, 1), the rest as linear layers. Trainable: v d + h (d + 1) + m (h + 1), or v m.
    `deltaw.prefill(adapted, ids)` starts E (h = 0) from the keys and values of a text. Does not merge.
    Source: Li and Liang 2021 (v = 10, h = 512 for table-to-text); PEFT's default is h = 0.
    Trap: keys are stored behind the rotation: real tokens count their positions from v on.

    >>> from deltaw.methods import PrefixTuning
    >>> {k: p.shape for k, p in PrefixTuning(v=4, h=3).params(48, 6).items()}
    {'E': (4, 6), 'W1': (3, 6), 'b1': (3,), 'W2': (48, 3), 'b2': (48,)}
    """

    sites: ClassVar[str] = "prefix"
    v: int = 10
    h: int = 512

    def params(self, m: int, n: int) -> Declared:
        positive(v=self.v)
        if not self.h:
            return {"E": Param((self.v, m), normal(1.0))}
        positive(h=self.h)
        return {
            "E": Param((self.v, n), normal(1.0)), "W1": Param((self.h, n), kaiming), "b1": Param((self.h,), uniform(n**-0.5)),
            "W2": Param((m, self.h), kaiming), "b2": Param((m,), uniform(self.h**-0.5)),
        }  # fmt: skip

    def layer(self, L: Affine, p: Tensors) -> Map:
        return Prefix(kv=(p.E @ p.W1.mT + p.b1).tanh() @ p.W2.mT + p.b2 if self.h else p.E)
