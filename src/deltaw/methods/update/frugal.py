"""FRUGAL: Adam on a part of each matrix, signSGD on the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from . import NOTHING, About, update
from . import algebra as al


@update(paper="arXiv:2411.07837")
class Frugal(al.MatrixUpdate):
    """D = up(Adam(down G)) + rest · sign(G - up(down G)); W <- (1 - lr wd) W - lr D; a new frame and new moments every `every` steps.

    frame: a share `density` of the columns, rows or entries at random; of the singular (svd) or of uniform directions (haar) of the
    smaller side; or of the matrices, whole, in turns (blocks). State of an m x n matrix: 2 density m n numbers, with svd and haar the
    frame too; with blocks 2 m n for the active ones. Source: Zmushko et al. 2024, and their code, which cuts density · n where this
    rounds; a random order of blocks is here one without gaps: each has its turn in a pass. density 0: signSGD. Trap: the signs move
    every entry by lr · rest, so for fine-tuning the authors take rest = 0.1.
    """

    density: float = 0.25
    frame: Literal["columns", "rows", "entries", "svd", "haar", "blocks"] = "columns"
    every: int = 200
    rest: float = 1.0
    svd: al.Solver = "randomized"
    order: al.Order = "random"
    inner: al.Word = "adam"
    weight_decay: float = 0.0

    def rule(self) -> al.Sub:
        frame: al.Frame = al.Whole()
        if self.frame in ("svd", "haar"):
            frame = al.Side(float(self.density), al.Haar() if self.frame == "haar" else al.solver(self.svd))
        elif self.frame != "blocks":
            frame = al.Coords(self.density, self.frame)  # type: ignore[arg-type]
        return al.Sub(frame, al.inner(self.inner, al.Adam()), al.SignSGD(self.rest), al.Reset(), self.every)

    def optimizer(
        self, named: Mapping[str, nn.Parameter], lr: float, about: About = NOTHING, **kw: Any
    ) -> torch.optim.Optimizer:
        if self.frame != "blocks":
            return super().optimizer(named, lr, about, **kw)
        mine = [name for name, p in named.items() if p.dim() == 2 and name not in about.lookups]
        turns = (len(mine), max(1, round(self.density * len(mine))), self.order, self.every)
        one = al.Plain() if self.inner == "adam" else al.Sub(al.Whole(), al.inner(self.inner, al.Adam()), every=0)
        idle = al.Sub(al.Whole(), al.Sign(), every=0, scale=self.rest)
        kw = {"weight_decay": self.weight_decay, **kw}
        return al.matrices(lambda name, p: al.Turns(one, mine.index(name), *turns, idle), named, lr, about, **kw)
