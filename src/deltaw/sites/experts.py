"""3-D expert parameters (E, a, b): each expert is a site `NAME.e`; the module runs with the stack rebuilt."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import Affine, Base
from .base import Site


class SliceBase(Base):
    """Expert e of a stack, (E, m, n), or (E, n, m) where the module computes x @ W."""

    def __init__(self, module: nn.Module, attr: str, index: int, transposed: bool):
        self.module, self.attr, self.index, self.transposed = module, attr, index, transposed
        _, a, b = self.stack.shape
        self.shape = (b, a) if transposed else (a, b)

    @property
    def stack(self) -> Tensor:
        return self.module._parameters[self.attr]  # type: ignore[return-value]

    @property
    def like(self) -> Tensor:
        return self.stack

    def weight(self) -> Tensor:
        w = self.stack[self.index]
        return w.mT if self.transposed else w

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight().to(x.dtype))

    def rmv(self, y: Tensor) -> Tensor:
        return F.linear(y, self.weight().mT.to(y.dtype))


class ExpertSite(Site):
    kind = "expert"
    pointwise = False

    def __init__(self, name: str, module: nn.Module, attr: str, index: int):
        super().__init__(name, module)
        self.attr, self.index = attr, index
        self.base = SliceBase(module, attr, index, bool(getattr(module, "is_transposed", False)))

    def leaf(self) -> Affine:
        return Affine(self.base)

    def written(self, W: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
        self.no_bias(bias)
        return {f"{self.attr}[{self.index}]": W.mT if self.base.transposed else W}


def sites(name: str, module: nn.Module, attr: str) -> list[ExpertSite]:
    return [ExpertSite(f"{name}.{attr}.{e}", module, attr, e) for e in range(module._parameters[attr].shape[0])]  # type: ignore[union-attr]
