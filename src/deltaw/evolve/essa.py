"""ESSA: CMA-ES on the singular values of a LoRA's factors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..attach import Adapted
from ..errors import SpecError, StateMismatch, need
from ..lowrank import core_svd
from ..ops import random as rng
from .loop import Search
from .members import Cored, Forward
from .places import AdapterPlace, adapter_places, thin

SEPARABLE = 10_000  # dimensions above which the covariance is a diagonal: a full one has dim² entries


@dataclass
class Factor:
    """U diag(s) Vt of one matrix."""

    U: Tensor
    s: Tensor
    Vt: Tensor

    @classmethod
    def of(cls, M: Tensor) -> Factor:
        eye = torch.eye(min(M.shape), dtype=torch.float64)
        M = M.detach().to("cpu", torch.float64)
        return cls(*(core_svd(M, eye) if M.shape[0] >= M.shape[1] else core_svd(eye, M)))

    def dense(self, s: Tensor) -> Tensor:
        return (self.U * s) @ self.Vt


class Layer:
    """s U_B diag(b) (V_Bᵀ U_A) diag(a) V_Aᵀ at one site; `count` of the values b_1, a_1, b_2, a_2 ... are searched."""

    def __init__(self, place: AdapterPlace, scale: float, share: float):
        self.place, self.scale, entry = place, scale, place.entry
        self.B, self.A = Factor.of(entry.get("B")), Factor.of(entry.get("A"))
        b, a = thin(place.site, entry, {k: entry.get(k).detach()[None] for k in ("B", "A")})
        found, wanted = (b[0] @ a[0]).double().cpu(), scale * self.B.dense(self.B.s) @ self.A.dense(self.A.s)
        if not torch.allclose(found, wanted, rtol=1e-4, atol=1e-6 * float(wanted.abs().max()) + 1e-12):
            raise SpecError(
                f"{place.site.name}: ESSA needs a change that is s B A and nothing else; {entry.method} is of another form"
            )
        turns = [(f, i) for i in range(max(len(self.B.s), len(self.A.s))) for f in (self.B, self.A) if i < len(f.s)]
        self.turns = turns[: math.ceil(share * len(turns))]
        self.start = torch.stack([f.s[i] for f, i in self.turns])
        self.unit = torch.stack([f.s[0] for f, _ in self.turns]).clamp_min(1e-12)
        self.core = self.B.Vt @ self.A.U

    def values(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """(count, dimensions) -> b and a, (count, r) each, with what is not searched as it was."""
        b, a = (f.s.repeat(len(theta), 1) for f in (self.B, self.A))
        for k, (f, i) in enumerate(self.turns):
            (b if f is self.B else a)[:, i] = theta[:, k]
        return b, a

    def forward(self, theta: Tensor) -> Forward:
        b, a = self.values(theta)
        cores = b[:, :, None] * self.core * a[:, None, :]
        like = self.place.entry.get("A")
        L, C, R = (t.to(like) for t in (self.scale * self.B.U, cores, self.A.Vt))
        return Forward(self.place.site, self.place.call, Cored(self.place.site.leaf(), L, C, R))

    @torch.no_grad()
    def write(self, theta: Tensor) -> None:
        b, a = self.values(theta[None])
        for name, f, s in (("B", self.B, b[0]), ("A", self.A, a[0])):
            self.place.entry.get(name).copy_(f.dense(s))


class Essa(Search):
    """B = U_B diag(b) V_Bᵀ, A = U_A diag(a) V_Aᵀ of a trained LoRA; CMA-ES searches b and a, all else stands still. A member's forward:
    s U_B diag(b) (V_Bᵀ U_A) diag(a) V_Aᵀ x, with one r x r matrix of its own.

    share: of each layer's 2r values, ceil(2r share) are searched, taken as b_1, a_1, b_2, a_2 ..., largest first (our reading of "top
    share": pooled by size, the factor of larger scale would take all). Coordinates are changes in units of each factor's
    largest value; sigma: their first standard deviation. population: CMA's 4 + 3 ln(dim) by default. Above 10⁴ dimensions
    the covariance is kept diagonal. A value may become negative: it is only a coordinate.
    `write()` puts the mean of the distribution into the adapter: a plain LoRA of the same rank. State: the table of scores, which
    together with the seed reproduces every member: restoring replays CMA, not the model.
    Source: Korotyshova et al. 2025 (arXiv:2507.04453), parametrisation from the abstract; settings are ours. Trap: values of a factor
    that is zero (a fresh LoRA's B) have no directions to scale: warm up by gradients first.
    """

    kind = "essa"

    def __init__(
        self, adapted: Adapted, *, share: float = 1.0, sigma: float = 0.1, population: int | None = None, group_size: int = 0,
        chunk: int | None = None, seed: int = 0,
    ):  # fmt: skip
        if not 0 < share <= 1 or not sigma > 0:
            raise SpecError(f"0 < share <= 1 and sigma > 0 were expected; found {share} and {sigma}")
        self.layers: list[Layer] = []
        for place in adapter_places(adapted):
            assert isinstance(place, AdapterPlace)
            layer = Layer(place, adapted._scale(place.site.name), share)
            if not (float(layer.B.s[0]) > 0 and float(layer.A.s[0]) > 0):
                raise SpecError(
                    f"{place.site.name}: a factor is zero, so its singular values have no directions: train the adapter a little first"
                )
            self.layers.append(layer)
        self.start = torch.cat([x.start for x in self.layers])
        self.unit = torch.cat([x.unit for x in self.layers])
        self.sigma, self.seed, self.cma = sigma, seed, need("cma", extra="evolve")
        count = int(4 + 3 * math.log(self.dimension)) if population is None else population
        if count < 2 or (group_size and count % group_size):
            raise SpecError(
                f"a population of at least 2, a multiple of the groups, was expected; found {count} in groups of {group_size}"
            )
        super().__init__(adapted.model, count, count // group_size if group_size else 1, chunk)
        self.table: list[Tensor] = []
        self.settings = {"population": count, "sigma": sigma, "share": share, "seed": seed, "dimension": self.dimension}
        self._begin()

    @property
    def dimension(self) -> int:
        return len(self.start)

    def _split(self, theta: Tensor) -> tuple[Tensor, ...]:
        """By layer, along the last axis."""
        return torch.split(theta, [len(x.start) for x in self.layers], -1)

    def _begin(self) -> None:
        self.epoch, self.table = 0, []
        self._asked: Any = None
        calls = [0]

        def randn(*shape: int) -> Any:  # numpy's global generator is left alone
            calls[0] += 1
            return rng.normal(shape, rng.key("essa", self.seed, calls[0])).numpy()

        options = {
            "popsize": self.population, "seed": float("nan"), "randn": randn, "CMA_diagonal": self.dimension > SEPARABLE, "verbose": -9,
        }  # fmt: skip
        self.es = self.cma.CMAEvolutionStrategy([0.0] * self.dimension, self.sigma, options)

    def members(self) -> Tensor:
        """The singular values (population, dimension) of this epoch's members."""
        if self._asked is None:
            self._asked = self.es.ask()
        return self.start + self.unit * torch.tensor([list(x) for x in self._asked], dtype=torch.float64)

    def mean(self) -> Tensor:
        """The singular values at the centre of the distribution."""
        return self.start + self.unit * torch.tensor(list(self.es.mean), dtype=torch.float64)

    def forwards(self, first: int, count: int) -> dict[nn.Module, Callable[..., Any]]:
        theta = self.members()[first : first + count]
        return {x.place.module: x.forward(t) for x, t in zip(self.layers, self._split(theta))}

    def tell(self, scores: Tensor) -> dict[str, float]:
        values = scores.detach().to("cpu", torch.float64)
        if values.shape != (self.population,) or not bool(torch.isfinite(values).all()):
            raise SpecError(
                f"{self.population} finite scores were expected, one per member; found {values.tolist()[:5]} ..."
            )
        self.members()
        self.es.tell(self._asked, [-v for v in values.tolist()])  # CMA minimises
        self.table.append(values)
        self.epoch, self._asked = self.epoch + 1, None
        return {"step_size": float(self.es.sigma)}

    def write(self, theta: Tensor | None = None) -> None:
        """The adapter with these singular values; the mean of the distribution by default."""
        theta = self.mean() if theta is None else theta
        for layer, part in zip(self.layers, self._split(theta)):
            layer.write(part)

    def state_dict(self) -> dict[str, Any]:
        """The scores so far (epochs, population), the directions they belong to, and the settings that CMA replays."""
        return {
            "scores": torch.stack(self.table) if self.table else torch.zeros(0, self.population, dtype=torch.float64),
            "start": self.start, "settings": dict(self.settings),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Into a search that was made from the same adapter as it was before its first epoch."""
        if state["settings"] != self.settings or not torch.allclose(state["start"], self.start, rtol=1e-6):
            raise StateMismatch(
                f"this state is of another search ({state['settings']}; here {self.settings}), or the adapter is not the one it began with"
            )
        self._begin()
        for scores in state["scores"]:
            self.tell(scores)
