"""LDAdam by hand, with whole matrices and projectors: what momentum and gradient cannot bring into the frame comes back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deltaw.methods.update.ldadam import LDAdam

from ..hand import State, adam, leading, on_the_left

RULES = [LDAdam(r=3), LDAdam(r=2, rho=0.5, betas=(0.9, 0.999))]


def closed(rule: LDAdam, p: dict[str, Tensor], grad: Any, lr: float, steps: int, s: float) -> dict[str, Tensor]:
    frames: dict[str, Tensor] = {}
    errors: dict[str, Tensor] = {}
    b1, b2 = rule.betas

    def way(k: str, step: int, M: Tensor, st: State) -> Tensor:
        if not step:
            P, full = leading(M, int(rule.r)), 0 * M
        else:
            M = M + errors[k]
            old, full = frames[k], frames[k] @ st["m"]
            look = rule.rho * full / (1 - b1**step) + (1 - rule.rho) * M
            P = torch.linalg.qr(look @ look.T @ old)[0]
            R, mean = P.T @ old, st["m"] / (1 - b1**step)
            var = torch.einsum("ij,jk->ik", R**2, st["v"] / (1 - b2**step) - mean**2) + (R @ mean) ** 2
            st["m"], st["v"] = R @ st["m"], var.abs() * (1 - b2**step)
        errors[k] = (torch.eye(len(P), dtype=P.dtype) - P @ P.T) @ (M + b1 / (1 - b1) * full)
        frames[k] = P
        return P @ adam(P.T @ M, st, lr, rule.eps, betas=rule.betas)

    return on_the_left(p, grad, lr, steps, way)
