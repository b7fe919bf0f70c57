"""PeriodicLoRA by hand: Adam on the two factors; W gets the unloaded share, the factors keep the square root of the rest."""

from __future__ import annotations

from deltaw.methods.rules.periodic_lora import PeriodicLoRA

from ...laws.base import close
from ...restarts import Run
from ..hand import State, adam

STEPS = 13


def check() -> str:
    for mu in (0.0, 0.1, 0.5, 1.0):
        follow(mu)
    return f"closed form, {STEPS} steps, four shares"


def follow(mu: float) -> None:
    run = Run(PeriodicLoRA(4, mu))
    W, (B, A), s = run.W0.clone(), run.factors(), run.s
    state: tuple[State, State] = {}, {}
    for k in run.steps(STEPS):
        G = run.gradient(W + s * B @ A)
        gB, gA = s * G @ A.T, s * B.T @ G
        B, A = B - adam(gB, state[0], run.lr), A - adam(gA, state[1], run.lr)
        if (k + 1) % 4 == 0:
            W = W + (1 - mu) * s * B @ A
            B, A = (mu**0.5 * B, mu**0.5 * A) if mu else (0 * B, run.factors()[1])
            state = {}, {}
        close(f"W' after step {k + 1}, mu = {mu}", run.weight(), W + s * B @ A, 1e-9)
        close(f"B after step {k + 1}, mu = {mu}", run.factors()[0] + 1, B + 1, 1e-9)
        close(f"A after step {k + 1}, mu = {mu}", run.factors()[1], A, 1e-9)
