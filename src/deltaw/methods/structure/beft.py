"""BEFT: an added bias."""

from __future__ import annotations

from ...ops import Affine, Map
from ...spec import Declared, Method, Param, Tensors, method


@method(paper="arXiv:2509.15974", claims=("with little data values' biases do better than queries' or keys'",))
class BEFT(Method):
    """y = W x + b0 + beta, beta (m,) trained; a layer without a bias gets one. Start: beta = 0, the base's first output.

    The paper trains the value projections' alone: Plan(BEFT(), targets=["v_proj"]). Trained per site: m. The weight does
    not change, so there is no LoRA of it. Source: Huang et al. 2025; as in HF PEFT. Trap: it merges only into layers
    that have a bias; and a bias in front of a softmax (on keys) moves nothing that a query sees.

    >>> from deltaw.methods import BEFT
    >>> BEFT().params(10, 6)["beta"].shape
    (10,)
    """

    def params(self, m: int, n: int) -> Declared:
        return {"beta": Param((m,))}

    def layer(self, L: Affine, p: Tensors) -> Map:
        return Affine(L.op, p.beta if L.bias is None else L.bias + p.beta)
