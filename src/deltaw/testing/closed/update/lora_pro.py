"""LoRA-Pro by hand: Adam on the tangent part of the weight's gradient; the gauge X from a linear system of r² unknowns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deltaw.methods.update.lora_pro import LoRAPro

from ..hand import adam

RULES = [LoRAPro(), LoRAPro(gauge="zero"), LoRAPro(gauge="symmetric", delta=1e-3)]


def closed(rule: LoRAPro, p: dict[str, Tensor], grad: Any, lr: float, steps: int, s: float) -> dict[str, Tensor]:
    state: dict[str, dict[str, Any]] = {"wide": {}, "tall": {}}
    E = torch.eye(3, dtype=torch.float64)
    for _ in range(steps):
        g = grad(p)
        for site in state:
            A, B = p[f"{site}.A"], p[f"{site}.B"]
            BB, AA = B.T @ B + rule.delta * E, A @ A.T + rule.delta * E
            out = torch.eye(len(B), dtype=torch.float64) - B @ torch.linalg.inv(BB) @ B.T
            hA = torch.linalg.solve(BB, g[f"{site}.A"]) / s**2
            hB = out @ g[f"{site}.B"] @ torch.linalg.inv(AA) / s**2
            D = adam(s * B @ hA + s * hB @ A, state[site], 1.0)
            a, b = s * B.T @ D, s * D @ A.T
            hA, hB = torch.linalg.solve(BB, a) / s**2, out @ b @ torch.linalg.inv(AA) / s**2
            X = torch.zeros_like(E)
            if rule.gauge == "sylvester":  # row by row: vec(BB X) = (BB ⊗ I) vec X, vec(X AA) = (I ⊗ AA) vec X
                X = torch.linalg.solve(torch.kron(BB, E) + torch.kron(E, AA), (-hA @ A.T).flatten()).view(3, 3)
            elif rule.gauge == "symmetric":
                X = -0.5 / s**2 * torch.linalg.inv(BB) @ B.T @ b @ torch.linalg.inv(AA)
            p[f"{site}.A"], p[f"{site}.B"] = A - lr * (hA + X @ A), B - lr * (hB - B @ X)
    return p
