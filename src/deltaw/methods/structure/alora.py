"""aLoRA: a low-rank delta that acts from an invocation sequence on."""

from __future__ import annotations

from typing import Any

from ...errors import SpecError
from ...ops import Affine, Map, chain
from ...spec import Declared, Method, Tensors, method
from ..factors import pair
from ..gating import Gated, places


@method(
    paper="arXiv:2504.12397",
    claims=("no prefill is repeated when switching: keys and values in front of the invocation are the base's own",),
)
class ALoRA(Method):
    """y_t = W x_t + b + [t >= s] (alpha / r) B A x_t, s where the last occurrence of `invocation` (token ids) starts.

    A (r, n), B (m, r) as in LoRA; a row without the invocation is the base everywhere, bit for bit, and so is what lies
    in front of it: a cache that the base has filled may be handed over. Decoding goes on as the prompt has left it.
    Start: A ~ U(±1/sqrt n), B = 0. Trainable: r (m + n). Does not merge. An empty `invocation`: LoRA at every token.
    Source: Greenewald et al. 2025 (r = 32, queries, keys and values only: targets=["q_proj", "k_proj", "v_proj"]).
    Trap: the invocation tokenised by itself may differ from how it is tokenised in its place: take the ids from there.

    >>> from deltaw.methods import ALoRA
    >>> {k: p.shape for k, p in ALoRA(r=4, invocation=(7, 9)).params(10, 6).items() if k != "here"}
    {'A': (4, 6), 'B': (10, 4)}
    """

    r: int = 32
    alpha: float = 32.0
    invocation: tuple[int, ...] = ()
    scale = property(lambda self: self.alpha / self.r)

    def params(self, m: int, n: int) -> Declared:
        ids = " ".join(str(int(i)) for i in self.invocation)
        return {**pair(m, n, self.r), "here": places(f"after {ids}" if ids else "all")}

    def declare(self, site: Any) -> Declared:
        if site.kind not in ("linear", "conv1d_hf", "opaque"):
            raise SpecError(f"{site.name}: aLoRA acts on linear layers, which see the tokens; found a {site.kind}")
        return self.params(*site.shape)

    def layer(self, L: Affine, p: Tensors) -> Map:
        return Gated(L, Affine(L.op + self.scale * chain(p.B, p.A), L.bias), p.here)
