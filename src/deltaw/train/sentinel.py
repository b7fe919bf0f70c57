"""A watch over the first steps: which trained tensors got no gradient, or did not move."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Sentinel:
    """Looks at every trained tensor for `steps` optimiser steps, then reports once.

    More than one step, because a factor next to one that starts at zero (A of LoRA) has an exactly zero gradient until
    its neighbour has moved, and because a warm-up's first rate is 0. Costs one copy of the trained tensors meanwhile.
    """

    def __init__(self, trained: dict[str, Tensor], steps: int = 5):
        self.trained, self.left = trained, steps
        self.start = {k: p.detach().clone() for k, p in trained.items()} if steps else {}
        self.silent = set(trained)
        self.broken: set[str] = set()

    @property
    def watching(self) -> bool:
        return self.left > 0

    @torch.no_grad()
    def gradients(self) -> None:
        """Call before the optimiser's step."""
        for name, p in self.trained.items():
            if p.grad is None:
                continue
            size = p.grad.abs().amax() if p.grad.numel() else p.grad.new_zeros(())
            if not torch.isfinite(size):
                self.broken.add(name)
            if name in self.silent and size != 0:
                self.silent.discard(name)

    @torch.no_grad()
    def step(self) -> dict[str, list[str]] | None:
        """Call after the optimiser's step: the findings when the watch ends, None before."""
        self.left -= 1
        return None if self.left > 0 else self.report()

    def report(self) -> dict[str, list[str]]:
        """{"no_gradient": ..., "unmoved": ..., "not_finite": ...}, names as in `Adapted.state()`."""
        self.left = 0
        unmoved = [k for k, p in self.trained.items() if torch.equal(self.start[k], p.detach())] if self.start else []
        self.start = {}
        return {
            "no_gradient": sorted(self.silent),
            "unmoved": sorted(k for k in unmoved if k not in self.silent),
            "not_finite": sorted(self.broken),
        }


def describe(found: dict[str, list[str]], steps: int, show: int = 5) -> list[str]:
    """The findings as sentences; nothing when all is well."""
    said = {
        "no_gradient": "got no gradient",
        "unmoved": "got a gradient and did not move",
        "not_finite": "had a gradient that is not finite",
    }
    out = []
    for key, words in said.items():
        names: list[Any] = found.get(key, [])
        if names:
            more = f" and {len(names) - show} more" if len(names) > show else ""
            out.append(
                f"{len(names)} trained tensors {words} in the first {steps} steps: {', '.join(names[:show])}{more}"
            )
    return out
