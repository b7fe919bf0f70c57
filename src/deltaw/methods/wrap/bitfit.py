"""BitFit: the biases that are there are trained, alone or beside another delta."""

from __future__ import annotations

from typing import Any

from ...errors import SpecError
from ...ops import Affine, Map
from ...spec import Declared, Method, Param, Tensors, method
from ..inside import tensors


@method(paper="arXiv:2106.10199", claims=("with little data as good as full fine-tuning, at under 0.1 % of the parameters",))
class BitFit(Method):
    """y = W x + bias, the layer's own bias (m,) trained as a copy; with `inner`, that method acts on (W, bias).

    Start: a copy, so the base's first output. Trained per site: m, and what `inner` has. PEFT's bias="lora_only" is
    BitFit(LoRA()); its bias="all" trains further layers, which a plan has to name. Source: Ben Zaken et al. 2021, who train
    the norms' biases as well. The weight does not change, so without `inner` there is no LoRA of it.
    Trap: a layer without a bias is left as it is, so that "all-linear" trains every bias there is, which in a Llama is
    none: `deltaw.preview` counts them. `BEFT` adds biases instead.

    >>> from deltaw.methods import BitFit, LoRA
    >>> sorted(BitFit().params(10, 6)), sorted(BitFit(LoRA(r=2)).params(10, 6))
    (['bias'], ['A', 'B', 'bias'])
    """

    inner: Method | None = None

    def params(self, m: int, n: int) -> Declared:
        return {**({} if self.inner is None else tensors("bitfit", self.inner, (m, n))), "bias": Param((m,))}

    def declare(self, site: Any) -> Declared:
        b0, own = site.leaf().bias, {} if self.inner is None else tensors("bitfit", self.inner, site)
        if "bias" in own:
            raise SpecError(f"{site.name}: {self.inner} has a tensor 'bias' of its own; bitfit cannot be put around it")
        if b0 is None and self.inner is None and site.kind in ("embedding", "expert"):
            raise SpecError(f"{site.name}: bitfit trains biases, and a {site.kind} never has one; leave it out (exclude=...)")
        return own if b0 is None else {**own, "bias": Param(tuple(b0.shape), lambda *_: b0.detach())}

    def layer(self, L: Affine, p: Tensors) -> Map:
        new = Affine(L.op, p.bias) if "bias" in p.names() else L
        return new if self.inner is None else self.inner.layer(new, p)
