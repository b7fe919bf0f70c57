"""SwitchLoRA's law by numbers of its paper: uniform, as wide as stated, whatever alpha; the base gives up what the factors add."""

from __future__ import annotations

import math

import torch

from deltaw.methods.init.switchlora import SwitchLoRA
from deltaw.methods.structure.lora import LoRA

from .... import attach
from ....plan import Plan
from ...laws.base import close, must
from ...tiny import One, settle

INITS, R = [SwitchLoRA()], 6


def check(init: SwitchLoRA) -> str:
    for m, n in ((64, 48), (40, 72)):
        for alpha in (1.0, 9.0):
            entry = attach(settle(One(m, n), torch.float64), Plan(LoRA(R, alpha), init=init)).entries()["blocks.0"]
            B, A = (entry.get(k).detach().double() for k in "BA")
            dev_B = (R / math.sqrt(m * n)) ** 0.25 * 3**-0.25 / math.sqrt(alpha)  # of one entry; their gain is 3^(-1/2)
            dev_A = (math.sqrt(m) * R / n**1.5) ** 0.25 * 3**-0.25 / math.sqrt(alpha)
            for name, t, dev in (("B", B, dev_B), ("A", A, dev_A)):
                most, size = float(t.abs().max()), float(t.square().mean().sqrt())
                must(0.95 < most / (math.sqrt(3) * dev) <= 1, f"{name}: {most / dev:.3f} deviations at most; sqrt 3 were expected")
                must(0.9 < size / dev < 1.1, f"{name}: {size / dev:.3f} of its deviation")
            got = dict(entry.named())
            close("the constant", got["offset.B"] @ got["offset.A"], -alpha / R * B @ A, 1e-6)
    return "two shapes, two alphas"
