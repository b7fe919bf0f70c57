"""Shears: a base that is sparse by Wanda, and a LoRA of elastic rank beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from . import compressor


@compressor(paper="arXiv:2404.10934", needs=("inputs",))
class Shears:
    """W_p = W without the (1 - keep) share of lowest |W_ij| |X_j|_2 in each row (Wanda); then a LoRA whose rank is drawn anew for every
    step from a short list (structure lonas, with one width); then one rank a group is chosen: the middle of
    the list, the least, the most, or the best that a search measures (`choose`).

    Source: Muñoz et al. 2024 and its code (half of the entries, ranks 32, 24, 16). Trap: merging would fill the zeros: keep the adapter apart,
    or use the structure sqft. Exactly floor((1 - keep) n) zeros a row.
    """

    def weight(self, W: Tensor, stats: dict[str, Tensor], keep: float) -> tuple[Tensor]:
        score = W.detach().double().abs() * stats["inputs"].double().diagonal().clamp(min=0).sqrt().to(W.device)
        count = int((1 - keep) * W.shape[1] + 1e-9)
        lowest = score.argsort(dim=1, stable=True)[:, :count]
        return (W.detach().clone().scatter_(1, lowest, 0.0),)


def choose(ranks: Sequence[int], groups: Sequence[str], how: str = "middle", measure: Callable[[dict[str, int]], float] | None = None) -> dict[str, int]:
    """group -> rank. "middle": entry floor((len - 1) / 2) of the list; "least", "most"; "search": from the middle, group by group, the
    choice with the best measure(config), higher being better, until a round changes nothing."""
    if how != "search":
        order = sorted(ranks, reverse=True)
        return dict.fromkeys(groups, {"middle": order[(len(order) - 1) // 2], "least": order[-1], "most": order[0]}[how])
    assert measure is not None
    config = choose(ranks, groups)
    best, moved = measure(config), True
    while moved:
        moved = False
        for group in groups:
            for r in ranks:
                if r != config[group] and (value := measure({**config, group: r})) > best:
                    config, best, moved = {**config, group: r}, value, True
    return config
