"""What does not depend on the machine: calls of torch's operators, and bytes saved for the backward pass."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import flop_counter
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


def flops(work: Callable[[], Any]) -> int:
    """Floating-point operations of all matrix products and of attention, in-place forms and the CPU's kernels included."""
    aten = torch.ops.aten
    more = {aten.addmm_: _product, aten.baddbmm_: _product}
    for kernel, count in (("", _attention), ("_backward", _attention_backward)):
        found = getattr(aten, f"_scaled_dot_product_flash_attention_for_cpu{kernel}", None)
        if found is not None:
            more[found] = count
    with flop_counter.FlopCounterMode(display=False, custom_mapping=more) as mode:
        work()
    return int(mode.get_total_flops())


def _product(y: Tensor, a: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    return 2 * a.numel() * b.shape[-1]


def _attention(q: Tensor, k: Tensor, *_: Any, **__: Any) -> int:
    return 4 * q.numel() * k.shape[-2]  # q kᵀ and p v


def _attention_backward(g: Tensor, q: Tensor, k: Tensor, *_: Any, **__: Any) -> int:
    return 10 * q.numel() * k.shape[-2]  # q kᵀ once more, and four gradients


for _count in (_product, _attention, _attention_backward):
    _count._get_raw = True  # type: ignore[attr-defined]  # called with tensors, not with shapes
