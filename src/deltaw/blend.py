"""Several adapters as one change: to merge them together, or to make one plain LoRA of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from .attach import Adapted
from .convert import Converted, site_layer, to_lora
from .errors import SpecError
from .merge import Merged, merge
from .plan import Assignment
from .session import Session, session
from .sites.module import Replace


class Blend:
    """W + sum of w_i (W_i - W) at every site that one of the adapters has: what `activate` makes live, ready to export.

    It reads the adapters' tensors whenever it is used and has none of its own.
    """

    def __init__(self, parts: Sequence[tuple[Adapted, float | Tensor]]):
        self.parts = tuple((a.name, w) for a, w in parts)
        self.model, self.name = parts[0][0].model, "+".join(a.name for a, _ in parts)
        whole = tuple(dict.fromkeys(m for a, _ in parts for m in a.plan.train_modules))
        self.plan = replace(parts[0][0].plan, train_modules=whole)
        self.assignments = _together([a.assignments for a, _ in parts])

    def _attached(self) -> Session:
        shared = session(self.model)
        for name, _ in self.parts:
            shared.known(name)
        return shared

    def state(self) -> dict[str, Tensor]:
        """The tensors of modules trained in full, blended; the rest is in the adapters."""
        found = [(a.site.name, site_layer(self, a)) for a in self.assignments if a.site.kind == "module"]  # type: ignore[arg-type]
        return {f"{site}.{k}": t for site, L in found if isinstance(L, Replace) for k, t in L.tensors.items()}

    def merge(self, probe: Any = None) -> Merged:
        """As `Adapted.merge`, of all of them at once: one rounding to the base's dtype instead of one each."""
        return merge(self, probe)  # type: ignore[arg-type]

    def to_lora(self, rank: int | None = None) -> Converted:
        """As `Adapted.to_lora`: the exact factors side by side, or cut at `rank`; `.save(dir)` makes one adapter of them."""
        return to_lora(self, rank)  # type: ignore[arg-type]


def _together(lists: list[list[Assignment]]) -> list[Assignment]:
    """Every site once. It is tied to another only if every adapter there ties it: else the two ends change apart."""
    found: dict[str, list[Assignment]] = {}
    for a in (a for one in lists for a in one):
        found.setdefault(a.site.name, []).append(a)
    out = []
    for here in found.values():
        shares = {a.shares for a in here}
        only = shares.pop() if len(shares) == 1 else None
        whole = only is not None and len(found[only]) == len(here)
        out.append(replace(here[0], shares=only if whole else None))
    return out


def blend(model: nn.Module, names: str | Sequence[str], weights: Sequence[float] | None = None) -> Blend:
    """The weighted sum of attached adapters as one thing with `merge()` and `to_lora()`; weights default to 1.

    The methods may differ: what is summed are the changes of the weights. What is live stays live.
    """
    shared = session(model)
    chosen = [names] if isinstance(names, str) else list(names)
    weights = [1.0] * len(chosen) if weights is None else weights
    if not chosen or len(set(chosen)) < len(chosen) or len(weights) != len(chosen):
        raise SpecError(f"blend takes different adapter names and one weight each; found {chosen} and {list(weights)}")
    found = {n: shared.adapters[shared.known(n)] for n in chosen}
    pairs = [(found[n], w if isinstance(w, Tensor) else float(w)) for n, w in zip(chosen, weights)]
    return Blend(pairs)
