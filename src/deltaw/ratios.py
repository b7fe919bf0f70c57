"""How much every layer gives up, found by trying: each alone at each ratio, and ASVD's cut list of what that costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from .compress import Factored, linear_sites, measured, replaced
from .errors import SpecError
from .methods.compress import COMPRESSORS
from .methods.rank.allocators import cut_list
from .passes import Progress
from .plan import one_of

GRID = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)  # the shares removed that ASVD tries


@torch.no_grad()
def search_ratios(
    model: nn.Module,
    method: str | Any,
    ratio: float,
    score: Callable[[nn.Module], float],
    batches: Sequence[Any] = (),
    *,
    targets: Any = "all-linear",
    exclude: Any = (),
    grid: Sequence[float] = GRID,
    forward: Callable[[Any, Any], Any] | None = None,
    progress: Progress | None = None,
) -> dict[str, float]:
    """site -> the share of its numbers to remove, 0 for a layer that stays: deltaw.compress(model, method, ratios=...).

    score(model) -> a loss or a perplexity, lower is better, on data that scores nothing else. For every linear layer among the targets and
    every share of `grid` that layer alone is replaced, the model is scored, and the layer is put back. Sorted by that, from a cut on
    every measurement counts, and of a layer the largest share among them; the cut is the one with which the layers keep at most 1 - ratio of
    their numbers. One pass of `score` for each layer and share. Source: Yuan et al. 2023 (arXiv:2312.05821) and its code.
    Errors: SpecError where even the largest share everywhere does not remove `ratio`, and for shares outside (0, 1).
    """
    chosen: Any = one_of(COMPRESSORS, method, "weight")
    if not grid or not all(0 < g < 1 for g in (*grid, ratio)):
        raise SpecError(f"ratio and grid are shares that are removed, between 0 and 1; found {ratio:g} and {tuple(grid)}")
    sites = linear_sites(model, targets, exclude)
    stats = measured(model, chosen, sites, chosen.needs, batches, forward)
    sizes = {s.name: sum(p.numel() for p in s.module.parameters()) for s in sites}
    left: dict[tuple[str, float], int] = {}
    triples = []
    for site in sites:
        layer: Any = site.module
        weight = layer.weight.detach().clone()
        parent, _, name = site.name.rpartition(".")
        for g in grid:
            try:
                replaced(model, site, chosen, stats.get(site.name, {}), 1 - g, False)
                new = model.get_submodule(site.name)
                pruned = int((weight != 0).sum() - (layer.weight != 0).sum())
                left[site.name, 1 - g] = sum(p.numel() for p in new.parameters()) if isinstance(new, Factored) else sizes[site.name] - pruned
                triples.append((site.name, 1 - g, float(score(model))))
            finally:
                setattr(model.get_submodule(parent), name, layer)
                layer.weight.copy_(weight)
            if progress is not None:
                progress(len(triples), len(sites) * len(grid))

    def fits(kept: dict[str, float]) -> bool:
        return sum(left.get((s, k), sizes[s]) for s, k in kept.items()) <= (1 - ratio) * sum(sizes.values())

    return {s: round(1 - k, 12) for s, k in cut_list(triples, fits).items()}
