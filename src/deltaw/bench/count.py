"""What does not depend on the machine: calls of torch's operators, and bytes saved for the backward pass."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


class Operators(TorchDispatchMode):
    """Counts every operator that reaches the backend while it is entered, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.name().removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))


def operators(work: Callable[[], Any]) -> dict[str, int]:
    """Operator -> number of calls."""
    with Operators() as mode:
        work()
    return dict(sorted(mode.counts.items()))


def saved_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes of the different storages that a forward saves for its backward, beside the model's own tensors."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept: dict[int, Tensor] = {}  # holds them, so that no address is used twice

    def pack(t: Tensor) -> Tensor:
        address = t.untyped_storage().data_ptr()
        if t.device.type != "meta" and address not in own and address not in kept:
            kept[address] = t.detach()
        return t.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = forward()
    del out
    return sum(t.untyped_storage().nbytes() for t in kept.values())
