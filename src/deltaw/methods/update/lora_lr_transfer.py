"""Learning rates of LoRA carried from one width, rank and scale to another."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import nn

from ..rates import Setting, suggest_lr
from . import NOTHING, About, rescaled, update
from .adamw import AdamW


@update(paper="arXiv:2602.06204")
class LoraLrTransfer:
    """The rate of a site with W + s B A, A (r, n): lr sqrt(s0 r0 n0 / (s r n)), where lr was tuned at (n0, r0, s0) and A starts random;
    lr s0 n0 / (s n) where B does (start="B"), the law of the whole weight too; lr s0 r0 / (s r) with `small` steps.

    So with s = alpha / r and a fixed alpha a rate holds for all ranks. n, r, s: of the tuned setting, 0: the site's own. inner: a rule that steps like
    Adam. Source: Chen, Villar and Hayou 2026, for steps that change outputs by order one; the exponents are our derivation, fitted in
    tests/test_transfer.py. Trap: rates for A and B of their own (`lora_plus`) follow another law, 1 / n and 1.
    """

    n: int = 0
    r: int = 0
    s: float = 0.0
    start: Literal["A", "B"] = "A"
    small: bool = False
    inner: object = AdamW()
    pairs: ClassVar[bool] = True

    def optimizer(self, named: dict[str, nn.Parameter], lr: float, about: About = NOTHING, **kw: Any) -> torch.optim.Optimizer:
        def factor(name: str, p: nn.Parameter) -> tuple[float, float]:
            site, _, tensor = name.rpartition(".")
            A = named.get(f"{site}.A")
            if tensor not in ("A", "B") or A is None:
                return 1.0, 1.0
            own = Setting(A.shape[1], A.shape[0], about.scale(site), self.start, self.small)
            tuned = Setting(self.n or own.n, self.r or own.r, self.s or own.s, self.start, self.small)
            return suggest_lr(1.0, tuned, own), 1.0

        return rescaled(self.inner, factor, named, lr, about, **kw)
