"""PRILoRA's ranks: linear in depth."""

from __future__ import annotations

from typing import Any

from ...spec import Start
from ..init import innermost
from . import allocators, ranks


@ranks(paper="arXiv:2401.11316")
class PRILoRA:
    """r_l = round(r_s + (r_f - r_s) l / (L - 1)) for layer l = 0 .. L - 1 of the L that are adapted; sites in no layer keep their rank.

    For a uniform budget r choose r_s + r_f = 2 r. s keeps the method's convention, alpha / r_l. Source: Benedek and Wolf 2024 (r_s 4,
    r_f 12). The pruning of A that goes with it is the rule prilora, of the structure prilora. Trap: rounding may miss the budget by a few.
    """

    r_s: int = 4
    r_f: int = 12

    def ranks(self, starts: list[Start], stats: dict[str, dict[str, Any]]) -> dict[str, int]:
        from ...sites.find import layer_index

        layer = {s.name: layer_index(s.name) for s in starts}
        order = sorted({k for k in layer.values() if k is not None})
        given = dict(zip(order, allocators.linear_depth(self.r_s, self.r_f, len(order))))
        return {s.name: innermost(s.method).r if (k := layer[s.name]) is None else min(given[k], *s.W.shape) for s in starts}  # type: ignore[attr-defined]
