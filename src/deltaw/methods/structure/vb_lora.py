"""VB-LoRA: both factors are made of tiles from one bank of vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import SpecError
from ...ops import Op, chain
from ...spec import Declared, Method, Param, Tensors, method, normal, uniform
from ..factors import divides, positive


@method(
    paper="arXiv:2405.15179",
    start="none: both factors are mixtures of bank vectors from the start, B A of the order of k⁻¹ r 0.02²",
    claims=("0.4 % of LoRA's stored numbers on LLaMA2-13B with better scores",),
)
class VBLoRA(Method):
    """y = W x + b0 + B A x, where every tile of `b` entries of a row of A, or of a column of B, is a mixture of bank vectors.

    Trained: V (h, b), the bank, one for the model; logits La (r, n/b, h), Lb (m/b, r, h) per site. A tile is
    sum_e w_e V_e over the k largest of its logits, w their softmax. h vectors of length b, b divides m and n. No scale.
    Start: V ~ U(±0.02), logits ~ N(0, 0.1²). Count: h b, and r h (m + n)/b a site. Exact LoRA rank: r.
    Source: Li et al. 2024; start as in HF PEFT. The authors train bank and logits at different rates.
    Trap: the softmax is over the k kept logits only, so the others get no gradient until they are among them.

    >>> from deltaw.methods import VBLoRA
    >>> {k: v.shape for k, v in VBLoRA(r=4, h=16, b=2).params(10, 6).items()}
    {'V': (16, 2), 'La': (4, 3, 16), 'Lb': (5, 4, 16)}
    """

    r: int = 4
    h: int = 256
    b: int = 256
    k: int = 2

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r, h=self.h, k=self.k)
        divides("b", self.b, m=m, n=n)
        if self.k > self.h:
            raise SpecError(f"vb_lora mixes k <= h bank vectors; found k = {self.k}, h = {self.h}")
        return {
            "V": Param((self.h, self.b), uniform(0.02), scope="model"),
            "La": Param((self.r, n // self.b, self.h), normal(0.1)),
            "Lb": Param((m // self.b, self.r, self.h), normal(0.1)),
        }

    def tiles(self, logits: Tensor, V: Tensor) -> Tensor:
        kept, i = logits.topk(self.k, -1)
        return (torch.softmax(kept, -1)[..., None] * V[i]).sum(-2)

    def weight(self, W: Op, p: Tensors) -> Op:
        A, B = self.tiles(p.La, p.V).flatten(1), self.tiles(p.Lb, p.V)
        return W + chain(B.transpose(1, 2).flatten(0, 1), A)
