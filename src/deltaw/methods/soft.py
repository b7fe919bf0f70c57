"""Starts of soft tokens (no method imports another)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ..errors import SpecError
from ..spec import Start

Begin = Literal["vocabulary", "normal"]


def spoken(ids: tuple[int, ...], begin: str) -> Callable[[Start, tuple[int, ...]], Tensor]:
    """The embeddings of these tokens, repeated or cut to fit; without any, of tokens drawn from the vocabulary, or N(0, 1)."""

    def fill(start: Start, shape: tuple[int, ...]) -> Tensor:
        size = start.W.shape[1]
        if ids:
            if max(ids) >= size or min(ids) < 0:
                raise SpecError(f"{start.name}: token ids must be below {size}; found {max(ids)}")
            chosen = [ids[k % len(ids)] for k in range(shape[0])]
        elif begin == "normal":
            return start.normal(shape, 1.0)
        else:
            chosen = (start.uniform((shape[0],), 0.5) + 0.5).mul(size).long().clamp_max(size - 1).tolist()
        return start.W.cols(torch.tensor(chosen, device=start.W.like.device)).detach()

    return fill
