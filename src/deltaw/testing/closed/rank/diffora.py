"""DiffoRA: exactly k sites of every layer."""

from __future__ import annotations

import torch

from ....methods.rank.diffora import DiffoRA
from ...laws.base import must


def check() -> str:
    g = {f"layers.{k}.{name}": torch.tensor([float((k + 1) * j % 4)]) for k in range(3) for j, name in enumerate("qkvo")}
    got = DiffoRA(r=3, keep=0.5).of(g)
    for k in range(3):
        mine = {n: float(t) for n, t in g.items() if n.startswith(f"layers.{k}.")}
        kept = [n for n in mine if got[n]]
        must(len(kept) == 2 and min(mine[n] for n in kept) >= max(v for n, v in mine.items() if n not in kept), f"layer {k}: {kept} of {mine}")
    must(set(got.values()) == {0, 3}, f"found {got}")
    return "two of four sites in each of three layers"
