"""EGGROLL: evolution strategies with low-rank probes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..attach import Adapted
from ..errors import SpecError, StateMismatch
from ..sites.find import Targets
from .loop import Search
from .noise import Noise
from .places import Tuned, adapter_places, own_places
from .shaping import shape_fitness


class Eggroll(Search):
    """Member i runs with W + (±sigma) E_i, E_i = A_i B_iᵀ / sqrt r (see `Noise`): y = W x + (±sigma / sqrt r) A_i (B_iᵀ x), the product with W
    shared by all, 2 r (m + n) operations a token and member. No activations are kept and no member's weights exist.

    Gradient given to the optimiser: g = -(sqrt N / N) sum_i f_i (±sigma) E_i, with the fitness f of `shape_fitness`; its mean
    is -sqrt N sigma² / std(f) times the gradient of the score.
    what: a model, whose own weights of the targets move in place (with biases and norms if `vectors`), or an attached
    adapter, whose trained tensors do. optimizer: parameters -> a torch optimiser; SGD with `lr` by default. population: even; antithetic
    pairs. group_size: neighbours with the same rows of the batch (0: all see all). chunk: members evaluated at a time.
    State: epoch and the optimiser's. The rank of one update is at most min(N r / 2, m, n).
    Source: Sarkar et al. 2025 (arXiv:2511.16652); as in ESHyperscale/HyperscaleES, where noise_reuse = 0 (here too: all epochs share their
    probes) is the default and vectors are evolved unless told otherwise. Trap: g has sigma and sqrt N as factors, so a rate for
    SGD belongs to one pair of them; Adam-like optimisers do not see it.
    """

    kind = "eggroll"

    def __init__(
        self, what: nn.Module | Adapted, lr: float = 1.0, *, sigma: float = 1e-3, rank: int = 1, population: int = 64,
        group_size: int = 0, noise_reuse: int = 1, chunk: int | None = None, seed: int = 0, vectors: bool = False,
        targets: Targets = "all-linear", exclude: Targets = (),
        optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
    ):  # fmt: skip
        if population < 2 or population % 2 or (chunk is not None and (chunk < 2 or chunk % 2)):
            raise SpecError(f"population and chunk are even (pairs of + and -); found {population} and {chunk}")
        if group_size and population % group_size:
            raise SpecError(f"groups of {group_size} do not divide a population of {population}")
        model = what.model if isinstance(what, Adapted) else what
        super().__init__(model, population, population // group_size if group_size else 1, chunk)
        self.noise = Noise(seed, sigma, rank, noise_reuse)
        self.group_size = group_size
        self.places = (
            adapter_places(what) if isinstance(what, Adapted) else own_places(model, targets, exclude, vectors)
        )
        self.tensors: dict[str, Tuned] = {k: t for p in self.places for k, t in p.tensors.items()}
        params = [t.parameter for t in self.tensors.values()]
        self.optimizer = torch.optim.SGD(params, lr=lr) if optimizer is None else optimizer(params)
        self.settings = {
            "population": population, "sigma": sigma, "rank": rank, "group_size": group_size, "noise_reuse": noise_reuse, "seed": seed,
            "lr": self.optimizer.param_groups[0]["lr"], "optimizer": type(self.optimizer).__name__,
            "trained": sum(p.numel() for p in params),
        }  # fmt: skip

    def forwards(self, first: int, count: int) -> dict[nn.Module, Callable[..., Any]]:
        pairs = range(first // 2, (first + count) // 2)
        return {p.module: p.forward(self.noise, self.epoch, pairs) for p in self.places}

    @torch.no_grad()
    def gradient(self, scores: Tensor) -> dict[str, Tensor]:
        """g of every trained tensor, in the layout of its parameter."""
        f = shape_fitness(scores, self.group_size)
        if len(f) != self.population:
            raise SpecError(f"{self.population} scores were expected, one per member; found {len(f)}")
        # both members of a pair share E: f_2j - f_2j+1 is what it is worth
        worth = (f[0::2] - f[1::2]) * (-self.noise.sigma / self.population**0.5)
        out: dict[str, Tensor] = {}
        for name, t in self.tensors.items():
            total: Any = 0.0
            for j in range(0, len(worth), max(self.chunk // 2, 1)):
                w = worth[j : j + max(self.chunk // 2, 1)]
                pairs = range(j, j + len(w))
                if t.matrix:
                    A, B = self.noise.factors(name, t.shape, self.epoch, pairs)  # type: ignore[arg-type]
                    left, right = (
                        (x.movedim(0, 1).flatten(1)).to(t.parameter.device) for x in (w.to(A)[:, None, None] * A, B)
                    )
                    total = total + left @ right.mT  # one product (m, N r) (N r, n)
                else:
                    E = self.noise.dense(name, t.shape, self.epoch, pairs)
                    total = total + torch.tensordot(w.to(E), E, 1).to(t.parameter.device)
            out[name] = t.laid(total).to(t.parameter.dtype)
        return out

    def tell(self, scores: Tensor) -> dict[str, float]:
        norm = 0.0
        for name, g in self.gradient(scores).items():
            self.tensors[name].parameter.grad = g.contiguous()
            norm += float(torch.linalg.vector_norm(g.float())) ** 2
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.epoch += 1
        return {"gradient_norm": norm**0.5}

    @torch.no_grad()
    def member(self, i: int) -> dict[str, Tensor]:
        """The tensors that member i of this epoch has, made whole: to look at one, or to go on from it."""
        out = {}
        for place in self.places:
            for name, t in place.tensors.items():
                change = place.change(name, self.noise, self.epoch, range(i // 2, i // 2 + 1))[i % 2]
                out[name] = t.parameter + t.laid(change).to(t.parameter)
        return out

    def state_dict(self) -> dict[str, Any]:
        """Epoch and optimiser; the weights are the model's (or the adapter's) own to save."""
        return {
            "epoch": torch.tensor(self.epoch),
            "names": list(self.tensors),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["names"] != list(self.tensors):
            raise StateMismatch(
                "this state is of a search over other tensors: give the same targets, or the same adapter"
            )
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch = int(state["epoch"])
