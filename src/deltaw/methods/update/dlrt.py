"""DLRT's optimiser: the KLS integrator. A step needs the gradient twice: at the weight, and in the basis that it found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import nn

from . import NOTHING, About, update
from .algebra import SGD, Adam, Plain, Unit
from .algebra.kls import Kls, KlsOptimizer, OnS


@update(paper="arXiv:2205.13571")
class DLRTSteps:
    """For Plan("dlrt", update="dlrt"). At W = U S Vᵀ: K = U S - lr G V, L = V Sᵀ - lr Gᵀ U; U1 = orth[K, U], V1 = orth[L, V] of
    twice the rank, S1 = (U1ᵀ U) S (V1ᵀ V)ᵀ, the same W; then, with the gradient there, S1 - lr U1ᵀ G V1 = P diag(sigma) Qᵀ, cut
    to the fewest sigma whose rest is <= theta |sigma|: U = U1 P, V = V1 Q. What is no such triple moves by AdamW in S halves.

    `step(closure)` is the method. `step()` is a half of it, so that ordinary loops (and Trainer) run it, too: two batches a
    step then. inner: "sgd", or "adam" with moments kept by column, as the authors' code has them, whatever the columns
    became. Source: Schotthöfer et al. 2022 (theta = 0.1, lr = 0.01); their code takes V1 times Qᵀ: not followed, nor its
    two backward passes for K and L (one gives both). Trap: it cuts at every rate, also during a warm-up from 0.
    """

    theta: float = 0.1
    inner: Literal["sgd", "adam"] = "sgd"
    weight_decay: float = 0.0
    structure: ClassVar[dict[str, Any]] = {"key": "dlrt", "r": 3, "r_max": 4}  # what it is tested on

    def optimizer(
        self, named: Mapping[str, nn.Parameter], lr: float, about: About = NOTHING, **kw: Any
    ) -> KlsOptimizer:
        rule, units = Kls(SGD() if self.inner == "sgd" else Adam(), self.theta), list[Unit]()
        for name, t in named.items():
            site, _, role = name.rpartition(".")
            triple = {r: named.get(f"{site}.{r}") for r in "USV"}
            if any(part is None for part in triple.values()) or role not in triple:
                units.append(Unit(name, OnS(Plain()), {"W": t}))
            elif role == "U":
                units.append(Unit(site, rule, {r: part for r, part in triple.items() if part is not None}))
        return KlsOptimizer(named, units, lr, **{"weight_decay": self.weight_decay, **kw})
