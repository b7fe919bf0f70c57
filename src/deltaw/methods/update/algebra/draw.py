"""Random numbers of one optimiser step: the same on every device, in every process and after a resume."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ....ops import random as rng


@dataclass(frozen=True)
class Draw:
    """Streams keyed by (seed, parameter name, word, step); values in the dtype and on the device of `like`."""

    seed: int
    name: str
    step: int

    def key(self, word: str) -> int:
        return rng.key(self.seed, self.name, word, self.step)

    def normal(self, shape: tuple[int, ...], like: Tensor, word: str = "normal", std: float = 1.0) -> Tensor:
        return rng.normal(shape, self.key(word), std).to(like)

    def uniform(
        self, shape: tuple[int, ...], like: Tensor, word: str = "uniform", low: float = 0.0, high: float = 1.0
    ) -> Tensor:
        return rng.uniform(shape, self.key(word), low, high).to(like)

    def choose(self, count: int, total: int, like: Tensor, word: str = "choose") -> Tensor:
        return rng.choose(count, total, self.key(word)).to(like.device)
