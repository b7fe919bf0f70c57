"""X-LoRA: a mixture of trained LoRA experts, weighted per token by one classifier."""

from __future__ import annotations

import torch

from ...errors import ShapeError, SpecError
from ...ops import Affine, Map
from ...spec import Declared, Method, Signal, Tensors, method
from ..routing import Routed, banks, classifier, classify, keep_largest


@method(
    paper="arXiv:2402.07148",
    start="none: the first output is a mixture of trained experts with near-equal weights",
    claims=("mixes trained experts token by token and layer by layer, in combinations none was trained for",),
)
class XLoRA(Method):
    """y = W x + b + gamma sum_e w_e B_e A_e x, w = softmax((V g + c) / tau), g = h, the base's own last hidden state, at depth 1;
    deeper, g = ReLU(V_{depth-1} ... ReLU(V_1 h + c_1) ... + c_{depth-1}), layers of `size` that all sites share.

    Frozen banks A (R, n), B (m, R) hold the experts' factors with their scales, R = sum of `ranks`; `deltaw.route`
    fills them. Trained, once for the model: V (K, hidden_size), c (K,), K = len(ranks); scope="site" gives every site
    its own (layer-wise scalings). softmax=False takes V g + c itself. top_k keeps the k largest w, without renormalising (0: all);
    again=True takes a softmax of the w that are not 0. Count at depth 1: (hidden_size + 1) K. h comes from a first pass without gradient.
    Not mergeable. Source: Buehler and Buehler 2024; as HF PEFT with scaling_pass_value = 0 and no dropout.
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
    depth: int = 1
    size: int = 2048
    softmax: bool = True
    again: bool = False

    def params(self, m: int, n: int) -> Declared:
        K, d = len(self.ranks), self.hidden_size
        if not 0 <= self.top_k <= K:
            raise SpecError(f"xlora has {K} experts; top_k must be between 0 and {K}, found {self.top_k}")
        return {**banks(m, n, self.ranks), **classifier(d, K, self.depth, self.size, self.scope), "h": Signal("hidden")}

    def layer(self, L: Affine, p: Tensors) -> Map:
        if (wide := p.h.shape[-1]) != self.hidden_size:
            raise ShapeError(f"xlora routes by hidden states of size {self.hidden_size}; this model's are {wide} wide")
        w = classify(p.h, p, self.depth)
        w = keep_largest(torch.softmax(w / self.tau, -1, dtype=p.V.dtype) if self.softmax else w, self.top_k)
        if self.again:
            w = torch.softmax(w.masked_fill(w == 0, float("-inf")), -1).masked_fill(w == 0, 0.0)
        return Routed(L, p.B, p.A, self.gamma * w, self.ranks)
