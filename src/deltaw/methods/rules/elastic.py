"""Elastic: which sub-network takes the next step."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from ...ops import random as rng
from ...sites.find import layer_index
from . import Rule, rule

GROUPS = (("q_proj|k_proj|v_proj|query|key|value", "attention"), ("gate_proj|up_proj|down_proj|fc1|fc2|c_fc", "mlp"))


@rule(paper="arXiv:2404.10934")
class Elastic(Rule):
    """After step t every group of sites draws, for step t + 1, one of `ranks` and (where `wide` matches) one of `widths`: at and w are
    ones for the first k terms and neurons, 0 beyond. A group: q, k, v of a layer; its MLP; any other site alone. From the seed, the group's
    name and the step: the same in every process, under recomputation and after a resume, whatever the order in which modules run.

    Terms and rows that are not drawn stand still, where momentum would move them. Source: Shears, LoNAS (their first module to run draws).
    """

    ranks: tuple[int, ...] = (32, 24, 16)
    widths: tuple[float, ...] = (1.0,)
    wide: str = "gate_proj|up_proj|fc1|c_fc"

    def before(self, view: Any) -> None:
        view.damp("B", (view.p.at[None] * view.p.w[:, None]).clone())
        view.damp("A", view.p.at[:, None].clone())

    def after(self, view: Any) -> None:
        group, seed = group_of(view.name), view.draw("").seed
        k = pick(self.ranks, seed, group, "rank", view.step)
        view.set("at", leading(len(view.p.at), k).to(view.p.at))
        if re.search(self.wide, view.name.rpartition(".")[2]):
            share = pick(self.widths, seed, group, "width", view.step)
            view.set("w", leading(len(view.p.w), round(share * len(view.p.w))).to(view.p.w))


def group_of(name: str) -> str:
    last = name.rpartition(".")[2]
    word = next((word for pattern, word in GROUPS if re.fullmatch(pattern, last)), name)
    return f"{layer_index(name)}/{word}"


def pick(choices: tuple[Any, ...], seed: int, group: str, word: str, step: int) -> Any:
    u = float(rng.uniform((1,), rng.key(seed, "elastic", group, word, step), 0.0, float(len(choices))))
    return choices[min(int(u), len(choices) - 1)]


def leading(size: int, k: int) -> Tensor:
    return (torch.arange(size) < k).float()
