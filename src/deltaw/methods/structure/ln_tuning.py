"""LN tuning: only the norms are trained."""

from __future__ import annotations

from typing import Any, ClassVar

from ...ops import Affine, Map
from ...sites.module import Replace
from ...spec import Declared, Method, Tensors, method
from ..copies import copies


@method(paper="arXiv:2312.11420", claims=("multimodal tuning at 13B: over 20 % above LoRA with 41.9 % fewer parameters",))
class LNTuning(Method):
    """y = weight ⊙ (x - mean) / sqrt(var + eps) + bias, or without mean and bias (RMS): weight, bias trained as copies.

    `Plan(LNTuning())` takes every norm of the model, or name norms by targets or layers; the base's own stay untouched. Another
    layer, if named, is trained in full, like `Full`.
    Start: copies, so the base's first output. Count: 2 n a layer norm, n an RMS norm. No activation has to be kept for the
    linear layers' weights. Several live adapters add their moves. Source: Zhao et al. 2023; as in HF PEFT, which copies the
    whole module. Trap: a merged norm is another norm, so norms that quantisation or a kernel has folded into the next
    linear layer cannot be named here; batch norms are refused, because training changes their statistics too.

    >>> from deltaw.methods import LNTuning
    >>> LNTuning().sites
    'norm'
    """

    sites: ClassVar[str] = "norm"

    def declare(self, site: Any) -> Declared:
        return copies(site)

    def layer(self, L: Affine, p: Tensors) -> Map:
        return Replace({k: getattr(p, k) for k in p.names()})
