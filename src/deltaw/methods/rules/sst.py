"""SST's turns: which singular vectors are trained next, and when the decomposition is made again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import SpecError
from . import Rule, View, rule


@rule(paper="arXiv:2405.15481")
class SSTTurns(Rule):
    """For a method with tensors U, V, S, u, v, I. After every step S <- max(S, 0), each u_i and v_i <- itself / its length.

    After every `every`-th step u, v go back into U, V, and r others are drawn, without replacement, with probabilities
    p_i = 1/2 (1 / q + S_i / sum S); their moments start at zero (so does Adam's counter), and the first `warmup` steps
    with them go only 1 / warmup, 2 / warmup, ... of the way. After ceil(q / r) such turns, before the draw, U, S, V become
    the SVD of U diag(S) V: vectors are orthogonal again, the weight is the same, S's moments start again (order and signs
    are new). The first I is drawn uniformly. Source: Zhao et al. 2025; warm-up steps and restart of S: our reading.
    """

    every: int = 200
    warmup: int = 20

    def start(self, view: View) -> dict[str, Tensor]:
        if not {"U", "V", "S", "u", "v", "I"} <= set(view.p.names()):
            raise SpecError(f"{view.name}: sst takes turns with singular vectors (method 'sst'); found {view.method}")
        return {"since": torch.tensor(self.warmup), "turns": torch.tensor(0)}

    def before(self, view: View) -> None:
        if (done := int(view.s["since"])) < self.warmup:
            for name in ("u", "v"):
                view.damp(name, (done + 1) / (self.warmup + 1))

    def after(self, view: View) -> None:
        p = view.p
        view.set("S", p.S.clamp(min=0.0))
        view.set("u", torch.nn.functional.normalize(p.u, dim=0))
        view.set("v", torch.nn.functional.normalize(p.v, dim=1))
        view.s["since"] += 1
        if view.step % self.every == 0:
            self.turn(view)

    def turn(self, view: Any) -> None:
        p, r = view.p, len(view.p.I)
        view.set("U", p.U.index_copy(1, p.I, p.u))
        view.set("V", p.V.index_copy(0, p.I, p.v))
        view.s["turns"] += 1
        q = len(p.S)
        if int(view.s["turns"]) % -(-q // r) == 0:
            U, S, V = torch.linalg.svd((p.U * p.S) @ p.V, full_matrices=False)
            for name, t, restart in (("U", U, False), ("S", S, True), ("V", V, False)):
                view.set(name, t, restart=restart)
        share = 0.5 * (1.0 / q + p.S.double() / p.S.double().sum().clamp_min(1e-300))
        dice = view.draw("sst").uniform((q,), 1.0).double().abs().clamp_min(1e-300).to(share)  # uniform on [0, 1)
        I = (dice.log() / share).topk(r).indices.sort().values  # noqa: E741  the largest of u^(1/p): draws one after another
        view.set("I", I)
        view.set("u", p.U[:, I], restart=True)
        view.set("v", p.V[I], restart=True)
        view.s["since"].zero_()
