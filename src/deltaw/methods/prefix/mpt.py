"""Multitask prompt tuning: one shared prompt, and a low-rank factor for every task."""

from __future__ import annotations

from typing import ClassVar

from ...ops import Affine, Map
from ...sites.prefix import Prefix
from ...spec import Declared, Method, Param, Signal, Tensors, method, normal
from ..factors import positive
from ..soft import Begin, spoken


@method(
    paper="arXiv:2303.02861",
    start="none: the soft tokens are read from the first step on, and start near zero",
    claims=("0.035 % of the parameters per task, better than full fine-tuning on some of 23 tasks",),
)
class MPT(Method):
    """A row of task k reads [P ⊙ (u_k w_k); E(x)]. P (v, d) shared, u (tasks, v, rho), w (tasks, rho, d), all trained.

    Start: P as in prompt tuning; u, w ~ N(0, 0.02²). Trainable: v d + tasks · rho (v + d). `deltaw.tasks(model, [0, 2])`
    says which row is of which task; without it all are of task 0. Source stage: all tasks in one batch; target stage:
    one task, started by copying from the source's tensors, or P only. Does not merge.
    Source: Wang et al. 2023 (rho = 1, v = 100), as in PEFT. Their distillation from single-task prompts is
    a loss, and not part of this.
    Trap: there is no "1 +" in the product, so a task's prompt starts about 0.0004 times as large as P.

    >>> from deltaw.methods import MPT
    >>> {k: p.shape for k, p in MPT(v=4, tasks=3).params(48, 6).items() if k != "k"}
    {'P': (4, 6), 'u': (3, 4, 1), 'w': (3, 1, 6)}
    """

    sites: ClassVar[str] = "prefix"
    v: int = 100
    tasks: int = 1
    rho: int = 1
    text: tuple[int, ...] = ()
    begin: Begin = "vocabulary"

    def params(self, m: int, n: int) -> Declared:
        positive(v=self.v, tasks=self.tasks, rho=self.rho)
        return {
            "P": Param((self.v, n), spoken(self.text, self.begin)), "u": Param((self.tasks, self.v, self.rho), normal(0.02)),
            "w": Param((self.tasks, self.rho, n), normal(0.02)), "k": Signal("tasks"),
        }  # fmt: skip

    def layer(self, L: Affine, p: Tensors) -> Map:
        return Prefix(tokens=p.P * (p.u[p.k] @ p.w[p.k]))
