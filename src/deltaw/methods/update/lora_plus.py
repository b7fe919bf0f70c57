"""LoRA+: a larger learning rate for B than for A."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from . import NOTHING, About, fused, grouped, update


@update(paper="arXiv:2402.12354")
class LoraPlus:
    """AdamW with rate lr for A (and other matrices), ratio · lr for B and every vector, embedding_lr at embeddings.

    With width n -> infinity and Adam, efficient learning needs rates of order 1/n for A and 1 for B. Biases get no
    weight decay. ratio = 1 is plain AdamW (embeddings apart). Source: Hayou et al. 2024; groups as in HF PEFT.
    Trap: where A is the factor that starts at zero the roles have to be swapped; embeddings have their own rate.
    """

    ratio: float = 16.0
    embedding_lr: float = 1e-6
    weight_decay: float = 0.0

    def optimizer(
        self, named: dict[str, nn.Parameter], lr: float, about: About = NOTHING, **kw: Any
    ) -> torch.optim.Optimizer:
        decay = kw.pop("weight_decay", self.weight_decay)
        rates = []
        for name, p in named.items():
            tensor = name.rsplit(".", 1)[-1]
            if name in about.lookups:
                rate, wd = self.embedding_lr, decay
            elif tensor.startswith("B") or p.dim() == 1:
                rate, wd = lr * self.ratio, 0.0 if tensor == "bias" else decay
            else:
                rate, wd = lr, decay
            rates.append(((("lr", rate), ("weight_decay", wd)), (name, p)))
        return fused(torch.optim.AdamW, grouped(rates), lr, **kw)
