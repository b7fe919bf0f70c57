"""LoRA-GGPO: training under noise on the weight, larger on rows of larger weights and gradients."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from torch import Tensor, int64

from ...ops import Affine, Map
from ...spec import METHODS, Declared, Method, Param, Start, Tensors, method
from ..inside import around, linear
from ..perturbed import Noise
from ..rules.lora_ggpo import RowNoise


def drawn(start: Start, shape: tuple[int, ...]) -> Tensor:
    """A first key for the noise."""
    return (start.uniform(shape, 1.0) * 2.0**52).to(int64)


@method(paper="arXiv:2502.14538", claims=("flatter minima: less of LoRA's double descent in fine-tuning",))
class LoRAGGPO(Method):
    """y = (V + N) x + b in training, N_ij ~ N(0, tau_i²), tau_i = sqrt(sigma² |V_i|² + beta² |G_i|²) / sqrt m; y = V x + b in
    evaluation and exports. V = W + s B A, made by `inner`; G = s (B dL/dA + dL/dB A), what the factors saw of dL/dV in the last step.

    N is new in every optimiser step, and none is added in the first; norms and noise carry no gradient. Count: that of `inner`; frozen:
    tau (m,), a key. Source: Chang et al. 2025, from public re-implementations, which have sigma |V_i| + beta |G_i|² in the place of
    the root. Their later LoRA-MGPO, along the momentum, is another method. Trap: N is drawn in every forward, m n numbers.

    >>> from deltaw.methods import LoRA, LoRAGGPO
    >>> sorted(LoRAGGPO(LoRA(r=4)).params(10, 6))
    ['A', 'B', 'key', 'tau']
    """

    inner: Method = field(default_factory=lambda: METHODS["lora"]())
    sigma: float = 0.03
    beta: float = 0.01

    def params(self, m: int, n: int) -> Declared:
        return self._noted((m, n), m)

    def declare(self, site: Any) -> Declared:
        return self._noted(site, site.shape[0])

    def _noted(self, where: Any, m: int) -> Declared:
        memory = {"tau": Param((m,), train=False, ruled=True), "key": Param((), drawn, False, dtype=int64, ruled=True)}
        return {**linear("lora_ggpo", self.inner, where, *memory, gated=True), **memory}

    def rules(self) -> tuple[Any, ...]:
        return (RowNoise(self.sigma, self.beta),)

    def layer(self, L: Affine, p: Tensors) -> Map:
        return around("lora_ggpo", self.inner, L, p, lambda V: self._noisy(V, p) if p.training else V)

    def _noisy(self, V: Affine, p: Tensors) -> Affine:
        return Affine(V.op + Noise(p.tau, V.op.shape[1], p.key), V.bias)
