"""Several processes that train one model without DDP: what the others have, means for plain tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..sites.watch import mean_of_processes, place, several
from .update.algebra import Plain, Step


def gather(t: Tensor) -> Tensor:
    """Everybody's t, one after the other along the first axis."""
    if not several():
        return t
    parts = [torch.empty_like(t, memory_format=torch.contiguous_format) for _ in range(place()[1])]
    torch.distributed.all_gather(parts, t.contiguous())
    return torch.cat(parts)


class Averaged(Plain):
    """AdamW on the mean gradient of the processes, which no DDP has formed."""

    def step(self, p: dict[str, Tensor], g: dict[str, Tensor], state: dict[str, dict[str, Any]], now: Step) -> None:
        super().step(p, {k: mean_of_processes(t.clone()) if several() else t for k, t in g.items()}, state, now)
