"""AutoLoRA's fusion: several LoRAs at once, each channel of each gated by what the base and the LoRA say."""

from __future__ import annotations

from ...ops import Affine, Map
from ...spec import Declared, Method, Param, Tensors, constant, method, normal, ones, zeros
from ..routing import Fused, banks

PLACES = ("w_b", "w_l", "w_c", "b")


@method(
    paper="arXiv:2508.02107",
    start="none: the first output is a sum of trained experts",
    claims=("a gated sum of several LoRAs beats their plain sum",),
)
class AutoLoRAFusion(Method):
    """y0 = W x + b0, h_i = B_i A_i x, g_i = sigmoid(LN_b(y0) * w_b + LN_l(h_i) * w_l + LN_b(y0) * LN_l(h_i) * w_c + b); y = y0 + sum_i w_o * g_i * h_i.
    Two layer norms with gains and shifts (eps 1e-5); all nine vectors (m,) are trained and shared by the experts, which are frozen banks A
    (R, n), B (m, R) with their scales: deltaw.route(model, experts, method="autolora_fusion").

    Start: gates N(0, noise²). noise = 0 (ours): g = 1/2, w_o = 2, the plain sum; the paper has noise 1 and w_o = 1. Count: 9 m. Not
    mergeable. Source: 2025 and its code in DiffSynth; its recipe (random subsets) is medium-sure. Not the AutoLoRA that finds ranks.
    Trap: the gates are for outputs, so an expert that is silent for a token stays silent.

    >>> from deltaw.methods import AutoLoRAFusion
    >>> sum(p.shape[0] for k, p in AutoLoRAFusion(ranks=(2, 2)).params(10, 6).items() if p.train)
    90
    """

    ranks: tuple[int, ...] = (8, 8)
    noise: float = 0.0

    def params(self, m: int, n: int) -> Declared:
        start = normal(self.noise) if self.noise else zeros
        norms = {"gain_b": ones, "shift_b": zeros, "gain_l": ones, "shift_l": zeros, "w_o": ones if self.noise else constant(2.0)}
        return {**banks(m, n, self.ranks), **{k: Param((m,), f) for k, f in norms.items()}, **{k: Param((m,), start) for k in PLACES}}

    def layer(self, L: Affine, p: Tensors) -> Map:
        return Fused(L, p, self.ranks)
