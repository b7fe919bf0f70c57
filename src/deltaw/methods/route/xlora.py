"""X-LoRA: a mixture of trained LoRA experts, weighted per token by one classifier."""

from __future__ import annotations

import torch

from ...errors import ShapeError, SpecError
from ...ops import Affine, Map, as_op
from ...spec import Declared, Method, Param, Signal, Tensors, kaiming, method, uniform
from ..routing import Routed, banks, keep_largest


@method(
    paper="arXiv:2402.07148",
    start="none: the first output is a mixture of trained experts with near-equal weights",
    claims=("mixes trained experts token by token and layer by layer, in combinations none was trained for",),
)
class XLoRA(Method):
    """y = W x + b + gamma sum_e w_e B_e A_e x, w = softmax((V h + c) / tau), h the base's own last hidden state.

    Frozen banks A (R, n), B (m, R) hold the experts' factors with their scales, R = sum of `ranks`; `deltaw.route`
    fills them. Trained, once for the model: V (K, hidden_size), c (K,), K = len(ranks); scope="site" gives every site
    its own (the paper's layer-wise scalings). top_k keeps the k largest w, without renormalising; 0 keeps all.
    Count: (hidden_size + 1) K. h comes from a first pass of the base without gradient. Not mergeable.
    Source: Buehler and Buehler 2024; as HF PEFT at depth 1 with scaling_pass_value = 0 and no dropout.
    Trap: two passes and no KV cache; an adapted layer must see all the tokens of the batch (a head may not).

    >>> from deltaw.methods import XLoRA
    >>> [(k, p.shape) for k, p in XLoRA(ranks=(4, 8), hidden_size=6).params(10, 6).items() if k in "ABVc"]
    [('A', (12, 6)), ('B', (10, 12)), ('V', (2, 6)), ('c', (2,))]
    """

    ranks: tuple[int, ...] = (8, 8)
    hidden_size: int = 768
    tau: float = 1.0
    gamma: float = 1.0
    top_k: int = 0
    scope: str = "model"

    def params(self, m: int, n: int) -> Declared:
        K, d = len(self.ranks), self.hidden_size
        if not 0 <= self.top_k <= K:
            raise SpecError(f"xlora has {K} experts; top_k must be between 0 and {K}, found {self.top_k}")
        return {
            **banks(m, n, self.ranks),
            "V": Param((K, d), kaiming, scope=self.scope),
            "c": Param((K,), uniform(d**-0.5), scope=self.scope),
            "h": Signal("hidden"),
        }

    def layer(self, L: Affine, p: Tensors) -> Map:
        if p.h.shape[-1] != p.V.shape[1]:
            raise ShapeError(f"xlora routes by hidden states of size {p.V.shape[1]}; this model's are {p.h.shape[-1]} wide")
        logits = Affine(as_op(p.V), p.c)(p.h)
        w = keep_largest(torch.softmax(logits / self.tau, -1, dtype=p.V.dtype), self.top_k)
        return Routed(L, p.B, p.A, self.gamma * w, self.ranks)
