"""Riemannian LoRA by hand: both gradients through the damped inverse of the other factor's Gram matrix, then Adam."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deltaw.methods.update.riemannian_lora import RiemannianLoRA

from ..hand import adam

RULES = [RiemannianLoRA(), RiemannianLoRA(delta=1e-6)]
PEFT = "trajectories of create_riemannian_optimizer: tests/test_update_factors.py"


def closed(rule: RiemannianLoRA, p: dict[str, Tensor], grad: Any, lr: float, steps: int, s: float) -> dict[str, Tensor]:
    state: dict[str, dict[str, Any]] = {k: {} for k in p}
    for _ in range(steps):
        g = grad(p)
        new = {}
        for k in p:
            site, word = k.split(".")
            A, B = p[f"{site}.A"], p[f"{site}.B"]
            gram = (B.T @ B if word == "A" else A @ A.T) + rule.delta * torch.eye(3, dtype=A.dtype)
            h = (torch.linalg.inv(gram) @ g[k] if word == "A" else g[k] @ torch.linalg.inv(gram)) / s**2
            new[k] = p[k] - adam(h, state[k], lr)
        p = new
    return p
