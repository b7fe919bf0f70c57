"""Lily: a down-projection shared by neighbouring layers, and a bank of up-projections shared by all, mixed by a router."""

from __future__ import annotations

from ...errors import SpecError
from ...ops import Affine, Map
from ...sites import Site
from ...spec import Declared, Method, Param, Tensors, kaiming, method, zeros
from ..factors import positive
from ..routing import Pooled, kin


@method(paper="arXiv:2407.09946", claims=("updates of a higher rank than LoRA's at the same count",))
class Lily(Method):
    """y = W x + b + s h (sum_e p_e B_e), h = A x, p = the mean over a row's tokens of softmax(R h).

    A (r, n): one for `stride_A` neighbouring layers of one type; B (num_B, r, m): one bank for all layers of a type (the
    name without its layer, and the shape); R (num_B, r): a router for each layer. Start: B = 0, the base's first output.
    Count per type, L layers: r n L / stride_A + num_B r m + num_B r L. r (n + m) + num_B r operations a token and num_B r m
    a row. Not mergeable. Source: Zhong et al. 2024; start and defaults as in HF PEFT.
    Trap: PEFT's mean runs over the whole batch, so there a row depends on its neighbours; alone it is the same. Padding
    counts, and in a generation each step is a row of one token. A layer that sees vectors takes each by itself.

    >>> from deltaw.methods import Lily
    >>> {k: p.shape for k, p in Lily(r=4).params(10, 6).items()}
    {'A': (4, 6), 'B': (2, 4, 10), 'R': (2, 4)}
    """

    r: int = 32
    stride_A: int = 1
    num_B: int = 2
    scaling: float = 1.0

    def params(self, m: int, n: int, a: str = "site", b: str = "site") -> Declared:
        positive(r=self.r, stride_A=self.stride_A)
        if self.num_B < 2:
            raise SpecError(f"lily's router needs a bank of at least 2; found num_B = {self.num_B}")
        shape = (self.num_B, self.r, m)
        return {"A": Param((self.r, n), kaiming, scope=a), "B": Param(shape, zeros, scope=b), "R": Param(shape[:2], kaiming)}

    def declare(self, site: Site) -> Declared:
        word, number = kin(site)
        return self.params(*site.shape, f"{word}/{number // max(self.stride_A, 1)}", word)

    def layer(self, L: Affine, p: Tensors) -> Map:
        return Pooled(L, p.A, p.R, self.scaling * p.B)
