"""LoNAS (Shears, LoNAS): a rank, and in MLPs a width, drawn from short lists for every step."""

from __future__ import annotations

from typing import Any

from ...errors import SpecError
from ...ops import Affine, Map, chain
from ...spec import RULES, Declared, Method, Param, Tensors, kaiming, method, ones
from ..factors import positive


@method(paper="arXiv:2501.16372", claims=("one training holds many sub-networks; the middle one is nearly as good as a searched one",))
class LoNAS(Method):
    """y = w * (W x + b + s B[:, :k] A[:k] x), s = alpha / max(ranks). k from `ranks` and, at sites that match `wide`, the width from `widths`
    (parts of m, w = 1 for the first of them and 0 beyond): both drawn anew for every optimiser step by the rule elastic, once for a group of
    sites: q, k, v of a layer share a rank, gate and up a width. Evaluation uses all ranks and widths; to serve a sub-network see `sub`.

    A (r, n), B (m, r) trained, r = max(ranks); the masks at (r,), w (m,) are moved by the rule. Start: A ~ U(±1/sqrt n), B = 0: the base's
    first output at the full choice. Count: r (m + n). Exact LoRA rank: r. Source: Shears and LoNAS, Muñoz et al. 2024 and 2025, their code;
    LoNAS's search package was not read. Trap: s stays alpha / r at every rank; widths cut neurons in their order: sort them first.

    >>> from deltaw.methods import LoNAS
    >>> {k: p.shape for k, p in LoNAS(ranks=(4, 2)).params(10, 8).items()}
    {'B': (10, 4), 'A': (4, 8), 'at': (4,), 'w': (10,)}
    """

    ranks: tuple[int, ...] = (32, 24, 16)
    widths: tuple[float, ...] = (1.0,)
    alpha: float = 64.0
    wide: str = "gate_proj|up_proj|fc1|c_fc"

    def params(self, m: int, n: int) -> Declared:
        r = max(self.ranks)
        positive(r=r)
        if not all(0 < v <= 1 for v in self.widths) or min(self.ranks) < 1:
            raise SpecError(f"ranks are at least 1 and widths parts in (0, 1]; found {self.ranks}, {self.widths}")
        masks = {"at": Param((r,), ones, train=False, ruled=True), "w": Param((m,), ones, train=False, ruled=True)}
        return {"B": Param((m, r)), "A": Param((r, n), kaiming), **masks}

    def layer(self, L: Affine, p: Tensors) -> Map:
        scale = self.alpha / max(self.ranks)
        if not p.training or not self.elastic(p):
            return Affine(L.op + scale * chain(p.B, p.A), L.bias)
        new = L.op + scale * chain(p.B, p.at, p.A)
        return Affine(new if len(self.widths) == 1 else chain(p.w, new), None if L.bias is None else L.bias * p.w.to(L.bias.dtype))

    def elastic(self, p: Tensors) -> bool:
        return len(self.ranks) > 1 or len(self.widths) > 1

    def rules(self) -> tuple[Any, ...]:
        return (RULES["elastic"](self.ranks, self.widths, self.wide),)
