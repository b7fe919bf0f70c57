"""Sinks that are another parametrisation of the matrix."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .inners import Adam, Inner
from .optimizer import Rule, Step


@dataclass(frozen=True)
class WeightNorm(Rule):
    """W = g V / |V| by rows: `rule` moves V, `size` moves g (with the decoupled weight decay: V has none that counts).

    dg_i = <G_i, v_i>, dV_i = (g_i / |V_i|) (G_i - dg_i v_i), v = V / |V|. Kept: g and |V|, m numbers each; V itself is read
    from W. A row of zeros has no direction and stays.
    """

    rule: Rule
    size: Inner = Adam()

    def floats(self, m: int, n: int) -> int:
        return self.rule.floats(m, n) + self.size.floats((m,)) + 2 * m

    def step(self, p: dict[str, Tensor], g: dict[str, Tensor], state: dict[str, dict[str, Any]], now: Step) -> None:
        (role,) = p
        W, s = p[role], state[role]
        exact = W.to(torch.promote_types(W.dtype, torch.float32))
        G = g[role].to(exact.dtype)
        if "g" not in s:
            s["g"] = exact.norm(dim=1)
            s["length"] = s["g"].clone()
        tiny = torch.finfo(exact.dtype).tiny
        v = exact / torch.where(s["g"].abs() < tiny, torch.inf, s["g"])[:, None]
        V = v * s["length"][:, None]
        dg = (G * v).sum(1)
        dV = (s["g"] / s["length"].clamp_min(tiny))[:, None] * (G - dg[:, None] * v)
        self.rule.step({role: V}, {role: dV}, {role: s.setdefault("direction", {})}, replace(now, decay={role: 0.0}))
        U, gain = self.size(dg, s.setdefault("size", {}))
        s["g"] = s["g"] * (1 - now.lr[role] * now.decay[role]) - now.lr[role] * gain * U
        s["length"] = V.norm(dim=1)
        W.copy_(V * (s["g"] / s["length"].clamp_min(tiny))[:, None])
