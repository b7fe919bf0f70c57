"""Shrink: the proximal step of an L1 penalty."""

from __future__ import annotations

import torch

from ...errors import SpecError
from . import Rule, View, rule


@rule(paper="(soft thresholding; for a penalty mu sum |t| under a step of size lr, by = lr mu)")
class Shrink(Rule):
    """t <- sign(t) max(|t| - by, 0) after every optimiser step: entries that the loss does not need become exact zeros."""

    tensor: str
    by: float

    def after(self, view: View) -> None:
        if not hasattr(view.p, self.tensor):
            raise SpecError(f"{view.name}: there is no '{self.tensor}' to shrink; it has {', '.join(view.trained())}")
        view.set(self.tensor, torch.nn.functional.softshrink(getattr(view.p, self.tensor), self.by))
