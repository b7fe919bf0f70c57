"""ResLoRA: residual paths between the LoRA blocks of successive layers."""

from __future__ import annotations

import re
from typing import Literal

import torch

from ...errors import SpecError
from ...ops import Op, chain
from ...sites import Site
from ...spec import Declared, Method, Param, Tensors, kaiming, method
from ..factors import positive


def line(name: str) -> str:
    """What the sites of one chain have in common: the name without its layer's number."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name, count=1)


@method(paper="arXiv:2402.18039", claims=("faster convergence than LoRA at the same parameters",))
class ResLoRA(Method):
    """y = W x + b + s sum_i B_{l-i} A_{l-i} x, i = 0..min(pre_num, l), s = alpha / r: the block shortcut of layer l.

    A_l (r, n), B_l (m, r) trained, one pair a layer, read by the next pre_num layers (-1: all) of its chain too: the adapted
    layers of one name and shape, such as all q_proj. Start: A ~ U(±1/sqrt n), B = 0, the base's first output. Trained per
    site: r (m + n). Exact LoRA rank: (pre_num + 1) r. Source: Shi et al. 2024 and its code; r, alpha as there for LLaMA.
    Trap: "is" and "ms" read activations of other layers, so no weight equals them; they are refused.

    >>> from deltaw.methods import ResLoRA
    >>> {k: v.shape for k, v in ResLoRA(r=4).params(10, 6).items()}
    {'A0': (4, 6), 'B0': (10, 4)}
    """

    r: int = 4
    alpha: float = 8.0
    pre_num: int = -1
    shortcut: Literal["bs", "is", "ms"] = "bs"

    def params(self, m: int, n: int) -> Declared:
        return self.pairs(m, n, "alone", 0)

    def declare(self, site: Site) -> Declared:
        (m, n), name = site.shape, line(site.name)
        chained = [s.name for s in site.peers if line(s.name) == name and s.shape == (m, n)] or [site.name]
        return self.pairs(m, n, f"{name}.{m}x{n}", chained.index(site.name))

    def pairs(self, m: int, n: int, scope: str, layer: int) -> Declared:
        positive(r=self.r)
        if self.shortcut != "bs" or self.pre_num < -1:
            why = "'is' and 'ms' add activations of other layers, which is no linear map of this layer's input"
            raise SpecError(f"reslora takes shortcut='bs', pre_num >= -1; found '{self.shortcut}', {self.pre_num}. {why}")
        seen = range(0 if self.pre_num < 0 else max(layer - self.pre_num, 0), layer + 1)
        A = {f"A{i}": Param((self.r, n), kaiming, scope=scope) for i in seen}
        return {**A, **{f"B{i}": Param((m, self.r), scope=scope) for i in seen}}

    def weight(self, W: Op, p: Tensors) -> Op:
        A, B = ([getattr(p, k) for k in p.names() if re.fullmatch(rf"{w}\d+", k)] for w in "AB")
        return W + self.alpha / self.r * chain(torch.cat(B, 1), torch.cat(A))
