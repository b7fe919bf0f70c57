"""A place where a delta can go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import NotMergeable
from ..ops import Affine, Base, Map


class Site:
    """One place of the model: `name` (as in `named_modules`), `module`, `kind`, `shape` (m, n).

    `leaf()` is the base there as an Affine; `run(L, call, args, kwargs)` is the module's forward with L in its place;
    `written(W, b)` lays a new weight (m, n), and a bias if it changed, out as the module's own parameters.
    """

    kind: ClassVar[str]
    pointwise: ClassVar[bool] = True  # `run` applies L to rows independently of each other, through L(x) or L.cols(i)
    gathers: ClassVar[bool] = False  # several maps become one by `joined` (live together) and `by_row` (a row each)
    index: int | None = None  # which expert of a stack
    window: int = 1  # how many of the n columns belong to one input channel
    transposed: bool = False  # the parameter is stored (n, m)
    peers: Sequence[Site] = ()  # every site of a plan that has the same method, this one too, in the model's order

    def __init__(self, name: str, module: nn.Module):
        self.name, self.module = name, module

    @property
    def shape(self) -> tuple[int, int]:
        return self.leaf().op.shape

    def leaf(self) -> Affine:
        raise NotImplementedError

    def run(self, L: Map, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return L(args[0] if args else next(iter(kwargs.values())))

    def merged(self, L: Map) -> dict[str, Tensor]:
        """The parameters of the module that change when L is written into them, by name."""
        if not isinstance(L, Affine):
            raise NotMergeable(
                f"{self.name}: {type(L).__name__} depends on its input, so no weight equals it; keep the adapter "
                "separate, or freeze the gate to constants first"
            )
        own = self.leaf().bias
        return self.written(L.op.dense(), None if L.bias is own else L.bias)

    def written(self, W: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
        raise NotMergeable(f"{self.name}: a {self.kind} has no weight that a delta could be merged into")

    def no_bias(self, bias: Tensor | None) -> None:
        """Raise the named error for a bias that has no place."""
        if bias is not None:
            raise NotMergeable(f"{self.name}: the delta has a bias and the base ({self.kind}) has none to write it to")

    def joined(self, maps: list[Map], weights: list[float | Tensor]) -> Map:
        """What several live adapters make together, where that is no sum of operators."""
        raise NotImplementedError

    def by_row(self, maps: dict[int, Map], which: Tensor) -> Map:
        """What row i sees: maps[which[i]], or the base alone."""
        raise NotImplementedError

    def parameter(self) -> Tensor | None:
        """The base parameter behind this site, to recognise tied weights."""
        return None

    def __repr__(self) -> str:
        return f"{self.kind} {self.name} {self.shape}"


def is_coded(t: Any) -> bool:
    """Is this a tensor whose class stores codes and knows how to decode them (torchao's)?"""
    return isinstance(t, Tensor) and type(t).dequantize is not Tensor.dequantize


def stamp_of(module: nn.Module) -> list[Any]:
    """Differs when a parameter was exchanged or written to. Writing through `.data` counts no version, so a few entries
    are looked at besides (on the CPU: elsewhere that would wait for the device)."""
    stamp: list[Any] = []
    for p in module._parameters.values():
        if p is None:
            continue
        if is_coded(p):
            stamp += [id(p), p._version]  # its memory is that of several tensors
        else:
            stamp += [p.data_ptr(), p.dtype, None if p.is_inference() else p._version]
            if p.device.type == "cpu" and p.is_contiguous() and p.numel():
                stamp.append(p.detach().view(-1)[:: max(p.numel() // 16, 1)].tolist())
    return stamp


class ModuleBase(Base):
    """A base leaf backed by a module. `native` is false once somebody else has replaced the module's forward."""

    def __init__(self, module: nn.Module):
        self.module = module
        found = module.__dict__.get("forward")  # another library's instance-level forward, kept; ours, looked through
        self.set_forward = getattr(found, "set_forward", found)
        self._square: tuple[Any, Tensor] | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward as it was before anything was attached."""
        if self.set_forward is not None:
            return self.set_forward(*args, **kwargs)
        return type(self.module).forward(self.module, *args, **kwargs)

    def row_square(self) -> Tensor:
        """|W|² by rows, kept for as long as the stored weight is the same: same memory, version and sampled entries."""
        if torch.compiler.is_compiling():
            return super().row_square()
        stamp = stamp_of(self.module)
        if self._square is None or self._square[0] != stamp:
            with torch.no_grad():
                self._square = (stamp, super().row_square())
        return self._square[1]

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        return getattr(self.module, "bias", None)
