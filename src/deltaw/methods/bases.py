"""Frozen bases that several methods share: random ones of a known size, seeds per site, names of kinds of projections."""

from __future__ import annotations

import math

from torch import Tensor

from ..ops import random as rng
from ..sites import Site
from ..spec import Start


def he(start: Start, shape: tuple[int, ...]) -> Tensor:
    """U(±sqrt(6 / fan-in)), the fan-in of the whole tensor where it is shared."""
    return start.uniform(shape, math.sqrt(6.0 / shape[-1]))


def unit(start: Start, shape: tuple[int, ...]) -> Tensor:
    """Uniform numbers of mean 0 and variance 1."""
    return start.uniform(shape, math.sqrt(3.0))


def seed_at(site: Site, seed: int) -> int:
    """A seed for one site: other numbers at every site, still regenerated instead of stored."""
    return rng.key("site", seed, site.name)


def role(name: str) -> str:
    """What a projection is called in every block: the last word of its name that is no number."""
    words = [w for w in name.split(".") if not w.isdigit()]
    return words[-1] if words else name
