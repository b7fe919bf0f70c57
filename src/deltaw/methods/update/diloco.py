"""DiLoCo: workers train alone for many steps, then an outer optimiser moves all of them by the mean of what they did."""

from __future__ import annotations

from ..outer import PhasedUpdate
from . import update


@update(paper="arXiv:2311.08105")
class DiLoCo(PhasedUpdate):
    """Each of K processes makes `every` steps of `inner` from theta_t on its own data; delta_k = theta_t - theta_k, d = mean_k delta_k;
    theta_{t+1} = theta_t - outer_lr (d + mu u), u <- mu u + d: Nesterov, the same in every process.

    Over adapters or whole models (`deltaw.optimizer`), without DDP, from the same weights; the learning rate and keywords
    are inner's, any update rule. `optimizer.outer` has `waited`, the seconds spent waiting. Source: Douillard et al. 2023;
    outer constants theirs. Trap: the mean of A and the mean of B is not the mean of B A: shorter phases help, and whole
    weights have no such gap. A checkpoint in the middle of a phase is one worker's: save every process's own.
    """

    inner: object = "adamw"
    every: int = 500
    outer_lr: float = 0.7
    momentum: float = 0.9
