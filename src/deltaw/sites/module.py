"""A whole module whose parameters are replaced by trained copies (a head, a norm), without touching the originals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import NotLinear
from ..ops import Affine, Eye, Map
from .base import ModuleBase, Site


class Shim(nn.Module):
    """Runs a module's original forward under other parameters: functional_call on the module would meet the patch."""

    def __init__(self, base: ModuleBase):
        super().__init__()
        self.inner = base.module
        self._call = base.forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def under(self, tensors: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return functional_call(self, {f"inner.{k}": v for k, v in tensors.items()}, args, kwargs)


class Replace(Map):
    """Not a map of a vector: the parameters a module should have instead of its own."""

    def __init__(self, tensors: dict[str, Tensor]):
        self.tensors = tensors


class ModuleSite(Site):
    kind = "module"
    pointwise = False

    def __init__(self, name: str, module: nn.Module):
        super().__init__(name, module)
        self.base = ModuleBase(module)
        self.shim = Shim(self.base)

    @property
    def shape(self) -> tuple[int, int]:
        return (1, 1)

    def leaf(self) -> Affine:
        like = next((p for p in self.module.parameters() if p.is_floating_point()), torch.empty(0))
        return Affine(Eye(1, like))

    def originals(self) -> dict[str, Tensor]:
        from .find import is_ours

        return {k: v for k, v in self.module.named_parameters() if not is_ours(k)}

    def run(self, L: Map, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not isinstance(L, Replace):
            raise NotLinear(f"{self.name}: a whole module takes replaced parameters only")
        own = self.originals()
        return self.shim.under({k: v.to(own[k].dtype) for k, v in L.tensors.items()}, args, kwargs)

    def merged(self, L: Map) -> dict[str, Tensor]:
        assert isinstance(L, Replace)
        return dict(L.tensors)
