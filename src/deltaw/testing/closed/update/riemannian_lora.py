"""Riemannian LoRA by hand: both gradients through the damped inverse of the other factor's Gram matrix, then Adam."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deltaw.methods.update.riemannian_lora import RiemannianLoRA

RULES = [RiemannianLoRA(), RiemannianLoRA(delta=1e-6)]
PEFT = "trajectories of create_riemannian_optimizer: tests/test_update_factors.py"


def closed(rule: RiemannianLoRA, p: dict[str, Tensor], grad: Any, lr: float, steps: int, s: float) -> dict[str, Tensor]:
    m, v = ({k: torch.zeros_like(t) for k, t in p.items()} for _ in range(2))
    for t in range(1, steps + 1):
        g = grad(p)
        new = {}
        for k in p:
            site, word = k.split(".")
            A, B = p[f"{site}.A"], p[f"{site}.B"]
            gram = (B.T @ B if word == "A" else A @ A.T) + rule.delta * torch.eye(3, dtype=A.dtype)
            h = (torch.linalg.inv(gram) @ g[k] if word == "A" else g[k] @ torch.linalg.inv(gram)) / s**2
            m[k], v[k] = 0.9 * m[k] + 0.1 * h, 0.999 * v[k] + 0.001 * h**2
            new[k] = p[k] - lr * (m[k] / (1 - 0.9**t)) / ((v[k] / (1 - 0.999**t)).sqrt() + 1e-8)
        p = new
    return p
