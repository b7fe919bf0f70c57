"""AutoLoRA: ranks from shares that are learned on held-out data."""

from __future__ import annotations

from torch import Tensor

from . import ranks


@ranks(paper="arXiv:2403.09113")
class AutoLoRA:
    """Search with the structure autolora: B, A by Adam on the training part, g on the other by one unrolled step (see
    deltaw.search_ranks); r_l = the number of terms with g_i / sum g >= 1 / r, at least 1. Then a plain LoRA with these ranks is trained anew.

    Source: Zhang et al. 2024 and its code, which compares the raw g, where the paper's text says softmax. Trap: the rule is no function of the
    softmax: adding a constant to g changes it.
    """

    r: int = 8
    alpha: float = 16.0

    def of(self, g: dict[str, Tensor]) -> dict[str, int]:
        return {k: max(1, int((t >= t.sum() / len(t)).sum())) if float(t.sum()) > 0 else len(t) for k, t in g.items()}
