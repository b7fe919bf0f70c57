"""A hidden-state stream: the output of a block, edited by a map whose base is the identity; or a branch beside a block,
whose base is zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ShapeError
from ..ops import Affine, Eye, Map, Zero
from .base import Site


class StreamSite(Site):
    kind = "stream"

    def __init__(self, name: str, module: nn.Module, width: int):
        super().__init__(name, module)
        self.width = width

    def leaf(self) -> Affine:
        like = next((p for p in self.module.parameters() if p.is_floating_point()), torch.empty(0))
        return Affine(Eye(self.width, like))

    def run(self, L: Map, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.edited(call(*args, **kwargs), L)

    def edited(self, out: Any, change: Callable[[Tensor], Tensor]) -> Any:
        """What the block puts out, with its hidden state changed."""
        first = out[0] if isinstance(out, tuple) and out else out
        if isinstance(first, Tensor):
            self.fits(first, self.width, "puts out")
            return change(first) if isinstance(out, Tensor) else (change(first), *out[1:])
        raise TypeError(
            f"{self.name}: a tensor or a tuple that starts with one was expected from the block; found {type(out)}"
        )

    def fits(self, x: Tensor, width: int, does: str) -> None:
        """Raise the named error for anything but a stream of that width."""
        if x.dim() == 0 or x.shape[-1] != width or not x.is_floating_point():
            raise ShapeError(
                f"{self.name}: hidden states of width {width} were expected on the last axis of what the block {does}; found "
                f"{tuple(x.shape)} of {x.dtype}. Channels on another axis (an image) and token ids are no such stream"
            )


class ParallelSite(StreamSite):
    """A branch from the input of a block (its first argument) to its output, added to it; m x n, of base zero."""

    kind = "parallel"

    def __init__(self, name: str, module: nn.Module, width: int):
        super().__init__(name, module, width)
        size = getattr(module, "in_features", getattr(module, "nx", width))  # nx: transformers' Conv1D
        self.inner = size if isinstance(size, int) else width

    def leaf(self) -> Affine:
        return Affine(Zero(self.width, self.inner, super().leaf().op.like))

    def run(self, L: Map, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x = args[0] if args else kwargs["hidden_states"] if "hidden_states" in kwargs else next(iter(kwargs.values()))
        self.fits(x, self.inner, "reads")
        return self.edited(call(*args, **kwargs), lambda out: out + L(x).to(out.dtype))
