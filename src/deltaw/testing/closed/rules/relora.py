"""ReLoRA by hand: Adam on the two factors, W updated in place, A as it was drawn."""

from __future__ import annotations

import math

from deltaw.methods.rules.relora import ReLoRA

from ...laws.base import close, must
from ...restarts import Run
from ..hand import State, adam

STEPS = 14


def check() -> str:
    for rule in (
        ReLoRA(4, prune=1.0, restart_warmup=2),
        ReLoRA(4, prune=0.0, restart_warmup=0),
        ReLoRA(2, 6, prune=1.0, restart_warmup=3),
    ):
        follow(rule)
    return f"closed form, {STEPS} steps, three rules"


def follow(rule: ReLoRA) -> None:
    run, cycle = Run(rule), rule.cycle or rule.every
    W, (B, A), s = run.W0.clone(), run.factors(), run.s
    state: tuple[State, State] = {}, {}
    for k in run.steps(STEPS):
        G = run.gradient(W + s * B @ A)
        short = min(k % cycle / rule.restart_warmup, 1) if k >= cycle and rule.restart_warmup else 1
        gB, gA = s * G @ A.T, s * B.T @ G
        B, A = B - adam(gB, state[0], run.lr * short), A - adam(gA, state[1], run.lr * short)
        if (k + 1) % rule.every == 0:
            W, B, before = W + s * B @ A, 0 * B, A
            A = run.factors()[1]
            must(
                not A.equal(before) and A.abs().max() <= 1 / math.sqrt(run.n) and A.std() > 0.4 / math.sqrt(run.n),
                "A is no new Kaiming start",
            )
            if (k + 1) % cycle == 0 and rule.prune == 1.0:
                state = {}, {}
        close(f"W' after step {k + 1}", run.weight(), W + s * B @ A, 1e-9)
        for name, got, want in zip("BA", run.factors(), (B, A)):
            close(f"{name} after step {k + 1}", got, want, 1e-9) if want.any() else must(
                not got.any(), f"{name} is not 0 after a restart"
            )
