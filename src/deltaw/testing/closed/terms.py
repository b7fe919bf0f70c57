"""Banks of rank-one terms by hand: every term is three tensors, each with an Adam of its own; rules edit lists of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ... import attach
from ...plan import Plan
from ..laws.base import close, must
from ..tiny import values
from .hand import State, adam

SIZES = {"0": (5, 6), "2": (4, 5)}
RATE = 2e-2


@dataclass
class Term:
    """t: its column b, gate g, row a by the name of the tensor they are in; what it has of Adam; what a rule remembers of it."""

    t: dict[str, Tensor]
    state: dict[str, State] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    moves: bool = True


class Terms:
    """Two layers with a bank each: the library's run, and the same by hand beside it. names: of the columns, gates, rows."""

    def __init__(self, plan: Any, total: int, scale: float, names: tuple[str, str | None, str] = ("B", "c", "A")):
        self.model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                p.copy_(values(*p.shape, name=name, std=0.5))
        self.W = {k: self.model[int(k)].weight.detach().clone() for k in SIZES}  # type: ignore[union-attr, operator]
        self.b = {k: self.model[int(k)].bias.detach().clone() for k in SIZES}  # type: ignore[union-attr, operator]
        self.adapted = attach(self.model, plan if isinstance(plan, Plan) else Plan(plan))
        self.optimizer = self.adapted.optimizer(RATE, steps=total)
        self.names, self.scale = names, dict.fromkeys(SIZES, scale)
        self.entries = self.adapted.entries()
        self.terms = {k: self.fresh(k) for k in SIZES}
        self.slopes: dict[str, Tensor] = {}  # dL/dW' of the last step, without penalties
        self.inputs: dict[str, Tensor] = {}  # of each layer in the last step

    def fresh(self, site: str, first: int = 0, names: tuple[str, str | None, str] | None = None) -> list[Term]:
        """The library's terms of a site as they are now, from number `first` on."""
        up, gate, down = names or self.names
        entry = self.entries[site]
        B, A = entry.get(up).detach(), entry.get(down).detach()
        g = entry.get(gate).detach() if gate else torch.ones(B.shape[1]).to(B)
        return [Term({"b": B[:, i].clone(), "g": g[i].clone(), "a": A[i].clone()}) for i in range(first, B.shape[1])]

    def stack(self, site: str) -> tuple[Tensor, Tensor, Tensor]:
        many = self.terms[site]
        return torch.stack([t.t["b"] for t in many], 1), torch.stack([t.t["g"] for t in many]), torch.stack([t.t["a"] for t in many])

    def change(self, site: str) -> Tensor:
        return self.scale[site] * sum(t.t["g"] * torch.outer(t.t["b"], t.t["a"]) for t in self.terms[site])  # type: ignore[return-value]

    def step(self, k: int, penalty: Callable[[], Tensor] | None = None) -> None:
        """Both runs, one step; afterwards a term's memory holds the gradients under "grad"."""
        x, y = values(8, 6, name=f"x{k}"), values(8, 4, name=f"y{k}")
        self.optimizer.zero_grad()
        (self.model(x) - y).square().mean().backward()
        self.optimizer.step()
        trained = [(t, w) for many in self.terms.values() for t in many for w in t.t if w != "g" or self.names[1]]
        for t, w in trained:
            t.t[w].requires_grad_()
        weights = {s: (self.W[s] + self.change(s)) for s in SIZES}
        for w_ in weights.values():
            w_.retain_grad()
        self.inputs = {"0": x, "2": torch.tanh(x @ weights["0"].mT + self.b["0"])}
        out = self.inputs["2"] @ weights["2"].mT + self.b["2"]
        loss = (out - y).square().mean()
        loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
        self.slopes = {s: w_.grad.clone() for s, w_ in weights.items() if w_.grad is not None}
        if penalty is not None:
            penalty().backward()  # type: ignore[no-untyped-call]
        for t, w in trained:
            g = torch.zeros_like(t.t[w]) if t.t[w].grad is None else t.t[w].grad
            assert g is not None
            t.memory[f"grad.{w}"] = g
            new = t.t[w].detach() - adam(g, t.state.setdefault(w, {}), RATE)
            t.t[w] = new if t.moves else t.t[w].detach()

    def agree(self, what: str, tol: float = 1e-9) -> None:
        for site in SIZES:
            for word, mine in zip(self.names, self.stack(site)):
                if word:
                    got = self.entries[site].get(word).detach()
                    must(got.shape == mine.shape, f"{what}: {site}.{word} is {tuple(got.shape)}, by hand {tuple(mine.shape)}")
                    close(f"{what}: {site}.{word}", got, mine.detach(), tol)

    def all(self) -> list[Term]:
        return [t for many in self.terms.values() for t in many]

    def orthonormality(self) -> Tensor:
        """The mean over all factors of |Gram matrix - I|_F."""
        found = []
        for site in SIZES:
            B, _, A = self.stack(site)
            eye = torch.eye(len(A)).to(A)
            found += [(B.mT @ B - eye).square().sum().sqrt(), (A @ A.mT - eye).square().sum().sqrt()]
        return sum(found) / len(found)  # type: ignore[return-value]

    def listen(self, beta1: float, beta2: float) -> None:
        """I and U of every number, from the values after the step and the gradients of it."""
        for t in self.all():
            for w, x in t.t.items():
                s = (x * t.memory[f"grad.{w}"]).abs()
                old_I, old_U = t.memory.get(f"I.{w}", torch.zeros_like(s)), t.memory.get(f"U.{w}", torch.zeros_like(s))
                mean = beta1 * old_I + (1 - beta1) * s
                t.memory[f"I.{w}"], t.memory[f"U.{w}"] = mean, beta2 * old_U + (1 - beta2) * (s - mean).abs()

    @staticmethod
    def score(t: Term) -> float:
        """I U of the gate and the means of I U over the two vectors."""
        return float(sum((t.memory[f"I.{w}"] * t.memory[f"U.{w}"]).mean() for w in "gba"))
