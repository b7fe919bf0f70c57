"""nn.Embedding: as a linear map its shape is (d, V), a lookup takes columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import SpecError
from ..ops import Affine, Map
from .base import Site
from .dense import LinearBase


class EmbeddingBase(LinearBase):
    bias = None

    def __init__(self, module: nn.Module):
        super().__init__(module, True)

    def cols(self, i: Tensor) -> Tensor:
        return F.embedding(i, self.like)


class EmbeddingSite(Site):
    kind = "embedding"
    transposed = True

    def __init__(self, name: str, module: Any):
        super().__init__(name, module)
        if module.max_norm is not None:
            raise SpecError(
                f"{name}: an embedding with max_norm rewrites its weight in every forward; it cannot be frozen"
            )
        self.base = EmbeddingBase(module)

    def leaf(self) -> Affine:
        return Affine(self.base)

    def parameter(self) -> Tensor:
        return self.base.like

    def written(self, W: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
        self.no_bias(bias)
        return {"weight": W.mT}

    def run(self, L: Map, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        ids: Tensor = args[0] if args else kwargs["input"]
        y = L.cols(ids)
        pad: Any = self.module.padding_idx
        if pad is not None:  # as in the base, the padding row gets no gradient
            y = torch.where((ids == pad).unsqueeze(-1), y.detach(), y)
        factor = getattr(self.module, "embed_scale", None)  # embeddings that scale their rows after the lookup
        return y.to(self.base.like.dtype) * (1.0 if factor is None else factor)


def site(name: str, module: nn.Module) -> Site | None:
    return EmbeddingSite(name, module) if isinstance(module, nn.Embedding) else None
