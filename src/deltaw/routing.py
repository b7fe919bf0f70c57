"""What routers do: who is chosen how often, per site, while a model runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .attach import Adapted
from .methods import routing as maps


@dataclass
class Routing:
    """site -> {"share": tokens that chose each expert or term, as a part of all; "weight": its mean weight; "entropy": of the shares, as a
    part of the most it can be; "imbalance": the largest share over the mean; "dead": how many were never chosen; "tokens"}."""

    sites: dict[str, dict[str, Any]] = field(default_factory=dict)


@contextmanager
def watch_routing(adapted: Adapted) -> Iterator[Routing]:
    """Record what the routers of an adapter choose inside this block; the result is complete when it ends."""
    seen: dict[str, list[Tensor]] = {}
    of = {id(entry.get("B")): site for site, entry in adapted.entries().items() if "B" in entry.own}
    out = Routing()
    kept = {cls: cls.__call__ for cls in (maps.Slotted, maps.Routed, maps.Prototyped)}

    def note(site: str | None, w: Tensor) -> None:
        if site is not None:
            w = w.detach().reshape(-1, w.shape[-1])
            seen.setdefault(site, []).append(torch.stack([(w != 0).sum(0).double(), w.double().sum(0), torch.full_like(w[0].double(), len(w))]).cpu())

    def slotted(self: Any, x: Tensor) -> Tensor:
        weigh = self.weigh
        site = of.get(id(getattr(self.B, "like", None)))

        def looked(x: Tensor, z: Tensor) -> Tensor:
            w: Tensor = weigh(x, z)
            note(site, w)
            return w

        self.weigh = looked
        try:
            return kept[maps.Slotted](self, x)
        finally:
            self.weigh = weigh

    inside: list[bool] = []

    def prototyped(self: Any, x: Tensor) -> Tensor:
        note(of.get(id(self.B)), self.weights(x))
        inside.append(True)  # it calls a Routed, whose weights are these again
        try:
            return kept[maps.Prototyped](self, x)
        finally:
            inside.pop()

    def routed(self: Any, x: Tensor) -> Tensor:
        site = of.get(id(getattr(self.B, "like", None)))
        note(None if inside else site, self.w)
        return kept[maps.Routed](self, x)

    new: dict[Any, Any] = {maps.Slotted: slotted, maps.Routed: routed, maps.Prototyped: prototyped}
    for cls, call in new.items():
        cls.__call__ = call
    try:
        yield out
    finally:
        for cls, call in kept.items():
            cls.__call__ = call  # type: ignore[method-assign]
        for site, parts in seen.items():
            chosen, weight, tokens = torch.stack(parts).sum(0)
            share = chosen / tokens.clamp(min=1)
            p = chosen / chosen.sum().clamp(min=1)
            entropy = float(-(p[p > 0] * p[p > 0].log()).sum()) / max(float(torch.log(torch.tensor(float(len(p))))), 1e-12)
            out.sites[site] = {
                "share": share.tolist(), "weight": (weight / tokens.clamp(min=1)).tolist(), "entropy": entropy,
                "imbalance": float(share.max() / share.mean().clamp(min=1e-12)), "dead": int((chosen == 0).sum()), "tokens": int(tokens[0]),
            }  # fmt: skip

