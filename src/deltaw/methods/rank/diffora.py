"""DiffoRA: which modules of each layer get an adapter at all."""

from __future__ import annotations

import math

from torch import Tensor

from ...sites.find import layer_index
from . import allocators, ranks


@ranks(paper="arXiv:2502.08905")
class DiffoRA:
    """Search with the structure diffora (see there, and deltaw.search_ranks); of every layer the ceil(keep M) of its M sites with the
    largest g keep rank r, the others get none. A reading, see the structure. Source: Jiang et al. 2025.
    """

    r: int = 8
    alpha: float = 16.0
    keep: float = 0.5

    def of(self, g: dict[str, Tensor]) -> dict[str, int]:
        layers = {k: layer_index(k) for k in g}
        out = dict.fromkeys(g, 0)
        for layer in dict.fromkeys(layers.values()):
            mine = {k: float(t) for k, t in g.items() if layers[k] == layer}
            out |= dict.fromkeys(allocators.best(mine, math.ceil(self.keep * len(mine))), self.r)
        return out
