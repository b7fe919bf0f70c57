"""nn.Linear and transformers' Conv1D (a linear layer whose weight is stored n x m)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import Affine
from .base import ModuleBase, Site, is_coded


def _autocast(x: Tensor) -> bool:
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


class LinearBase(ModuleBase):
    """W as the module stores it (m, n), or transposed for Conv1D."""

    def __init__(self, module: nn.Module, transposed: bool = False):
        super().__init__(module)
        self.transposed = transposed
        m, n = self.weight().shape
        self.shape = (m, n)

    @property
    def like(self) -> Tensor:
        return self.module.weight  # type: ignore[return-value]

    def weight(self) -> Tensor:
        return self.like.mT if self.transposed else self.like

    def direct(self, x: Tensor) -> Tensor | None:
        w = self.like
        plain = type(self) is LinearBase and self.set_forward is None and type(w) in (Tensor, nn.Parameter)
        return self.weight() if plain and w.dtype == x.dtype and not w.requires_grad else None

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight().to(x.dtype))

    def rmv(self, y: Tensor) -> Tensor:
        return F.linear(y, self.weight().mT.to(y.dtype))

    def affine(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if bias is self.bias and (x.dtype == self.like.dtype or _autocast(x)):
            return self.forward(x)  # type: ignore[no-any-return]
        return F.linear(x, self.weight().to(x.dtype), None if bias is None else bias.to(x.dtype))


class LinearSite(Site):
    kind = "linear"

    def __init__(self, name: str, module: nn.Module):
        super().__init__(name, module)
        self.base = LinearBase(module, self.transposed)

    def leaf(self) -> Affine:
        return Affine(self.base, self.base.bias)

    def parameter(self) -> Tensor:
        return self.base.like

    def written(self, W: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
        out = {"weight": W.mT if self.transposed else W}
        if bias is not None:
            self.no_bias(bias if self.base.bias is None else None)
            out["bias"] = bias
        return out


class Conv1DSite(LinearSite):
    kind = "conv1d_hf"
    transposed = True


def site(name: str, module: nn.Module) -> Site | None:
    if is_coded(module._parameters.get("weight")):  # opaque
        return None
    if type(module).forward is nn.Linear.forward and "weight" in module._parameters:  # else it is computed: opaque
        return LinearSite(name, module)
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return Conv1DSite(name, module)
    return None
