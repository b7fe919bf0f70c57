"""Two factors with a product of zero: their sizes, their ranks, their law."""

from __future__ import annotations

import torch

from deltaw.methods.init.orthogonal import Orthogonal
from deltaw.methods.structure.lora import LoRA

from .... import attach
from ....plan import Plan
from ...laws.base import must
from ...tiny import One, settle

INITS, R = [Orthogonal()], 6


def check(init: Orthogonal) -> str:
    for m, n in ((64, 48), (40, 72)):
        entry = attach(settle(One(m, n), torch.float64), Plan(LoRA(R, 12.0), init=init)).entries()["blocks.0"]
        B, A = (entry.get(k).detach().double() for k in "BA")
        must(float((B @ A).abs().max()) < 1e-6, "B A is not 0")
        for name, t, many in (("B", B, m), ("A", A.mT, n)):  # r / 2 directions, of 0.1 sqrt(many) each
            sigma = torch.linalg.svdvals(t)
            must(float(sigma[R // 2]) < 1e-6 < float(sigma[R // 2 - 1]), f"{name} has the singular values {sigma.tolist()}")
            size = float(sigma.square().sum() / (R // 2) / many) ** 0.5
            must(0.08 < size < 0.12, f"{name} is {size:.3f} in size; 0.1 was expected")
    return "two shapes"
