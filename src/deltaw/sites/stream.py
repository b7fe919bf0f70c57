"""A hidden-state stream: the output of a block, edited by a map of shape (d, d) whose base is the identity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ShapeError
from ..ops import Affine, Eye, Map
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
        out = call(*args, **kwargs)
        first = out[0] if isinstance(out, tuple) and out else out
        if isinstance(first, Tensor):
            if first.shape[-1] != self.width:
                raise ShapeError(
                    f"{self.name}: hidden states of width {self.width} were expected on the last axis of what the block puts "
                    f"out; found {tuple(first.shape)}. Channels on another axis (an image) are no such stream"
                )
            return L(first) if isinstance(out, Tensor) else (L(first), *out[1:])
        raise TypeError(
            f"{self.name}: a tensor or a tuple that starts with one was expected from the block; found {type(out)}"
        )
