"""Both factors at once: the step of A and B whose first-order change of W' is a direction in the tangent space of W + s B A."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .inners import Inner
from .optimizer import Rule, Step
from .pair import decayed, inverse, spectrum

Spectrum = tuple[Tensor, Tensor]


def sylvester(left: Spectrum, right: Spectrum, R: Tensor) -> Tensor:
    """X with L X + X M = R for the symmetric L and M that have these eigenvalues and vectors."""
    (a, U), (b, V) = left, right
    return U @ ((U.mT @ R @ V) / (a[:, None] + b[None, :])) @ V.mT


@dataclass(frozen=True)
class Tangent(Rule):
    """g = P_B G + G P_A - P_B G P_A, made from dL/dA and dL/dB; D = inner(g), m x n; A <- A - lr dA, B <- B - lr dB, where

        dA = s⁻² (BᵀB)⁻¹ a + X A,  dB = s⁻² (I - P_B) b (A Aᵀ)⁻¹ - B X,  a = s Bᵀ D,  b = s D Aᵀ

    so that s (dB A + B dA) is the tangent part of D whatever the r x r gauge X is. sylvester: the X of least |dA - a|² + |dB - b|²,
    which solves BᵀB X + X A Aᵀ = -s⁻² (BᵀB)⁻¹ a Aᵀ; zero: none; symmetric: -s⁻² (BᵀB)⁻¹ Bᵀ b (A Aᵀ)⁻¹ / 2. delta is added to both Gram
    matrices: with B = 0 this gives a = 0, X = 0 by itself. State: that of the inner optimiser, m x n (kept with B).
    """

    inner: Inner
    s: float = 1.0
    delta: float = 1e-8
    gauge: Literal["sylvester", "zero", "symmetric"] = "sylvester"

    def step(self, p: dict[str, Tensor], g: dict[str, Tensor], state: dict[str, dict[str, Any]], now: Step) -> None:
        dtype = torch.promote_types(p["A"].dtype, torch.float32)
        A, B, a, b = (t.detach().to(dtype) for t in (p["A"], p["B"], g["A"], g["B"]))
        left, right = spectrum(B.mT @ B, self.delta), spectrum(A @ A.mT, self.delta)
        dA, dB = self._parts(A, B, a, b, inverse(*left), inverse(*right))
        D, gain = self.inner(self.s * (B @ dA + dB @ A), state["B"].setdefault("inner", {}))
        a, b = self.s * (B.mT @ D), self.s * (D @ A.mT)
        dA, dB = self._parts(A, B, a, b, inverse(*left), inverse(*right))
        if self.gauge != "zero":
            if self.gauge == "sylvester":
                X = sylvester(left, right, -dA @ A.mT)
            else:
                X = inverse(*left) @ (B.mT @ b) @ inverse(*right) / (-2 * self.s**2)
            dA, dB = dA + X @ A, dB - B @ X
        for role, d in (("A", dA), ("B", dB)):
            with decayed(p[role], now, role, "before"):
                p[role].add_(d.to(p[role]), alpha=-now.lr[role] * gain)

    def _parts(self, A: Tensor, B: Tensor, a: Tensor, b: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """dA and dB at X = 0."""
        return left @ a / self.s**2, (b - B @ (left @ (B.mT @ b))) @ right / self.s**2
