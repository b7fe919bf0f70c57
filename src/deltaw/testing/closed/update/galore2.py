"""GaLore 2 by hand: GaLore on the leading space that many rounds of subspace iteration converge to."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from deltaw.methods.update.galore import GaLore
from deltaw.methods.update.galore2 import GaLore2

from . import galore

RULES = [GaLore2(r=1, every=4, oversample=1, power=60), GaLore2(r=3, every=4), GaLore2(r=2, every=4, inner="lion")]
TOLERANCE = 1e-6  # of the iteration


def closed(rule: GaLore2, p: dict[str, Tensor], grad: Any, lr: float, steps: int, s: float) -> dict[str, Tensor]:
    return galore.closed(GaLore(r=rule.r, every=rule.every, scale=rule.scale, inner=rule.inner), p, grad, lr, steps, s)
