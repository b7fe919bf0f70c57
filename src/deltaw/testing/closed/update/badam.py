"""BAdam by hand: Adam from nothing on one module at a time."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from deltaw.methods.update.badam import BAdam

from ..hand import adam

RULES = [BAdam(every=4), BAdam(every=3, order="ascending")]


def closed(rule: BAdam, p: dict[str, Tensor], grad: Any, lr: float, steps: int, s: float) -> dict[str, Tensor]:
    modules, state = ["wide", "tall"], {}
    for step in range(steps):
        turn = step // rule.every % 2
        active = modules[turn] if rule.order == "ascending" else modules[1 - turn]
        if step % rule.every == 0:
            state = {k: dict[str, Any]() for k in p}
        G = grad(p)
        p = {k: t - adam(G[k], state[k], lr) if k.startswith(active) else t for k, t in p.items()}
    return p
