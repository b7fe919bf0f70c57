"""A linear layer of another library (quantised, sharded, fused): an opaque leaf, called by its own kernel.

A provider adds one predicate and one way to read the dense weight; nothing else in the library knows about it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from ..errors import NotLinear, NotMergeable, need
from ..ops import Affine
from .base import ModuleBase, Site, is_coded

Decode = Callable[[Any], Tensor]


class OpaqueBase(ModuleBase):
    """y = module(x); `weight()` decodes, which is a cold path."""

    def __init__(self, module: Any, shape: tuple[int, int], decode: Decode):
        super().__init__(module)
        self.shape, self.decode = shape, decode

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        y = super().forward(*args, **kwargs)
        if not isinstance(y, Tensor):
            raise NotLinear(
                f"{type(self.module).__name__} puts out a {type(y).__name__}, not the tensor of a linear layer; leave "
                "this layer out (exclude=...)"
            )
        return y

    @property
    def like(self) -> Tensor:
        """The dtype the layer computes in is not that of its stored codes: take a bias, or float32."""
        bias = self.bias
        if bias is not None:
            return bias
        mine = getattr(self.module, "like", None)
        if isinstance(mine, Tensor):
            return mine
        device: torch.device = next(self.module.parameters()).device
        return torch.empty(0, device=device, dtype=torch.float32)

    def weight(self) -> Tensor:
        return self.decode(self.module)

    def __call__(self, x: Tensor) -> Tensor:
        y = self.forward(x)
        bias = self.bias
        out: Tensor = y if bias is None else y - bias.to(y.dtype)
        return out

    def affine(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if bias is self.bias:
            return self.forward(x)
        y = self(x)
        return y if bias is None else y + bias.to(y.dtype)


class OpaqueSite(Site):
    kind = "opaque"

    def __init__(self, name: str, module: Any, shape: tuple[int, int], decode: Decode):
        super().__init__(name, module)
        self.base = OpaqueBase(module, shape, decode)

    def leaf(self) -> Affine:
        return Affine(self.base, self.base.bias)

    def written(self, W: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
        raise NotMergeable(
            f"{self.name}: the base layer is {type(self.module).__name__}, whose weight is not stored as it is used; "
            "merging would have to encode or quantise again. Load the base in 16 or 32 bits to merge, or keep the adapter separate"
        )


Provider = tuple[Callable[[nn.Module], bool], Callable[[Any], tuple[int, int]], Decode]
PROVIDERS: list[Provider] = []


def provide(matches: Callable[[nn.Module], bool], shape: Callable[[Any], tuple[int, int]], decode: Decode) -> None:
    PROVIDERS.append((matches, shape, decode))


def site(name: str, module: nn.Module) -> Site | None:
    for matches, shape, decode in PROVIDERS:
        if matches(module):
            return OpaqueSite(name, module, shape(module), decode)
    return None


def _bnb(*names: str) -> Callable[[nn.Module], bool]:
    return lambda m: any(c.__module__.startswith("bitsandbytes") and c.__name__ in names for c in type(m).__mro__)


def _out_in(m: Any) -> tuple[int, int]:
    return m.out_features, m.in_features


def _decode4(m: Any) -> Tensor:
    f = need("bitsandbytes.functional", "bnb")
    return f.dequantize_4bit(m.weight.data, m.weight.quant_state).reshape(m.out_features, m.in_features)  # type: ignore[no-any-return]


def _decode8(m: Any) -> Tensor:
    w = m.weight
    codes = w.CB if getattr(w, "CB", None) is not None else w.data
    rows = w.SCB if getattr(w, "SCB", None) is not None else m.state.SCB
    if codes.dtype != torch.int8:  # not quantised yet: that happens when the module first moves to its device
        return codes  # type: ignore[no-any-return]
    return codes.float() * (rows.float() / 127.0)[:, None]  # type: ignore[no-any-return]


def _decoded(m: Any) -> Tensor:
    """torchao's: an ordinary layer whose weight is a tensor of codes."""
    W: Tensor = m.weight.dequantize()
    return W


provide(lambda m: isinstance(m, nn.Linear) and is_coded(m._parameters.get("weight")), _out_in, _decoded)
provide(_bnb("Linear4bit"), _out_in, _decode4)
provide(_bnb("Linear8bitLt"), _out_in, _decode8)


def _own_forward(m: nn.Module) -> bool:
    """Any other nn.Linear: a forward of its own, or a parametrised weight (reading that one may change its state)."""
    if not isinstance(m, nn.Linear) or is_parametrized(m):
        return isinstance(m, nn.Linear)
    return m.weight.is_floating_point() and m.weight.dim() == 2


provide(
    _own_forward,
    _out_in,
    lambda m: m.weight,
)
