"""FoRA: a low-rank change that looks at neighbouring image tokens and at their spectrum."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F

from ...errors import SpecError
from ...ops import Affine, Map
from ...spec import Declared, Method, Param, Tensors, kaiming, method
from ..factors import positive
from ..grid import Gridded, fan_in


@method(paper="arXiv:2603.22969", claims=("the spatial and the frequency part each help a little, together more",))
class FoRA(Method):
    """y = W x + b + W_d F(S(W_e x)) over the tokens of an image on their H x W grid; frequency-aware low-rank adaptation.

    S(z) = z + K1 * z + K3 * z + K5 * z (1x1, 3x3, 5x5, applied as one), F(z) = Re IFFT2(K_f * FFT2(z)), K_f 3x3 over the
    stacked real and imaginary channels. W_e (r, n), W_d (m, r), K (r, r, k, k), K_f (2r, 2r, 3, 3), all trained.
    A 4-d input is its own grid; of (batch, tokens, n) the first `prefix` tokens pass by S and F (class and prompt tokens
    have no place), the others fill rows of `width` (0: as square as they divide).
    Start: W_d = 0, the others ~ U(±1/sqrt fan-in): the base's first output. Count: r (m + n) + 35 r² + 36 r². Linear
    in x, but no weight equals it: it does not merge. Source: Ni et al. 2026, without code and known from its summary;
    readings: the sum in S (not a concatenation), zero padding, the real part, the start, r, no scale.
    Trap: whole images only: one token at a time (a cache) or several images in one axis are other grids.

    >>> from deltaw.methods import FoRA
    >>> {k: p.shape for k, p in FoRA(r=2).params(10, 6).items() if k in ("W_d", "K3", "K_f")}
    {'W_d': (10, 2), 'K3': (2, 2, 3, 3), 'K_f': (4, 4, 3, 3)}
    """

    pointwise: ClassVar[bool] = False
    r: int = 8
    prefix: int = 0
    width: int = 0

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r)
        if self.prefix < 0 or self.width < 0:
            raise SpecError(f"prefix and width count tokens; found {self.prefix} and {self.width}")
        kernels = {f"K{k}": Param((self.r, self.r, k, k), fan_in) for k in (1, 3, 5)}
        kernels["K_f"] = Param((2 * self.r, 2 * self.r, 3, 3), fan_in)
        return {"W_e": Param((self.r, n), kaiming), "W_d": Param((m, self.r)), **kernels}

    def layer(self, L: Affine, p: Tensors) -> Map:
        K = F.pad(p.K1, (2, 2, 2, 2)) + F.pad(p.K3, (1, 1, 1, 1)) + p.K5
        return Gridded(L, p.W_d, p.W_e, (K, p.K_f), self.prefix, self.width)
