"""nn.Conv1d/2d/3d, groups included: the weight is the matrix (m, n/g · k…) and a delta is applied as convolutions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import NotLinear
from ..ops import Affine, Chain, Eye, Kron, Map, Op, Sum, chain
from .base import Site
from .dense import LinearBase


class ConvBase(LinearBase):
    """The kernel flattened to (m, n/g · k…)."""

    def weight(self) -> Tensor:
        return self.like.flatten(1)


class ConvSite(Site):
    kind = "conv"
    pointwise = False

    def __init__(self, name: str, module: Any):
        super().__init__(name, module)
        self.base, self.conv = ConvBase(module), module
        self.window = math.prod(module.kernel_size)

    def leaf(self) -> Affine:
        return Affine(self.base, self.base.bias)

    def parameter(self) -> Tensor:
        return self.base.like

    def written(self, W: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
        self.no_bias(bias if self.base.bias is None else None)
        out = {"weight": W.reshape(self.conv.weight.shape)}
        return out if bias is None else {**out, "bias": bias}

    def run(self, L: Map, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        if not isinstance(L, Affine):
            raise NotLinear(f"{self.name}: a convolution takes affine deltas only; {type(L).__name__} is no such map")
        x: Tensor = args[0] if args else kwargs["input"]
        op, bias = L.op, L.bias
        if isinstance(op, Sum) and op.terms[0] is self.base and bias is self.base.bias:
            y = self.base.forward(x)
            for term in op.terms[1:]:
                y = y + self.convolve(term, x)
            return y  # type: ignore[no-any-return]
        y = self.convolve(op, x)
        return y if bias is None else y + bias.to(y.dtype).reshape(-1, *[1] * (self.conv.weight.dim() - 2))

    def convolve(self, op: Op, x: Tensor) -> Tensor:
        """op on the patches of x: the last factor of a product as a convolution, the others on its channels; a last factor
        A ⊗ I over the taps on the channels of x first."""
        if isinstance(op, Sum):
            y = self.convolve(op.terms[0], x)
            for term in op.terms[1:]:
                y = y + self.convolve(term, x)
            return y
        before = getattr(op, "before", None)  # a map of the input, entry by entry, ahead of op.op: dropout
        if before is not None:
            return self.convolve(op.op, before(x))  # type: ignore[attr-defined]
        if isinstance(op, Chain) and self.conv.groups == 1:
            mix = op.parts[-1]
            if isinstance(mix, Kron) and isinstance(mix.b, Eye) and mix.b.plain and mix.b.n == self.window:
                x = mix.a(x.movedim(self._channel, -1)).movedim(-1, self._channel)  # the same map at every tap
                return self.convolve(chain(*op.parts[:-1]), x)
            y = self.convolve(op.parts[-1], x).movedim(self._channel, -1)
            for part in reversed(op.parts[:-1]):
                y = part(y)
            return y.movedim(-1, self._channel)
        return self._native(x, op.dense())

    @property
    def _channel(self) -> int:
        return 1 - int(self.conv.weight.dim())  # counted from the end: a batch dimension is optional

    def _native(self, x: Tensor, w: Tensor) -> Tensor:
        c = self.conv
        kernel = w.reshape(w.shape[0], -1, *c.weight.shape[2:]).to(x.dtype)
        padding: Any = c.padding
        if c.padding_mode != "zeros":
            x, padding = F.pad(x, c._reversed_padding_repeated_twice, mode=c.padding_mode), 0
        f = (F.conv1d, F.conv2d, F.conv3d)[c.weight.dim() - 3]
        out: Tensor = f(x, kernel, None, c.stride, padding, c.dilation, c.groups)
        return out


def site(name: str, module: nn.Module) -> Site | None:
    return ConvSite(name, module) if type(module) in (nn.Conv1d, nn.Conv2d, nn.Conv3d) else None
