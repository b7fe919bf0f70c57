"""FLoRA (Tucker; other methods have that name too): a Tucker decomposition of the change, in the shape of the weight."""

from __future__ import annotations

import math
from typing import Any

from ...errors import ShapeError
from ...ops import Eye, Kron, Op, chain
from ...spec import Declared, Method, Param, Tensors, method, normal, zeros
from ..factors import positive


@method(paper="arXiv:2405.14739", claims=("the change of an N-D weight keeps its structure; in vision and in language",))
class FLoRATucker(Method):
    """delta[o, i, h, w] = s sum_abcd G[a, b, c, d] U_in[i, a] U_out[o, b] U_0[h, c] U_1[w, d]; a linear layer has no h, w.

    All trained: G (r_in, r_out, q_0, ...), U_in (n, r_in), U_out (m, r_out), U_t (kernel size, q_t) for every axis t of
    the kernel, q_t = min(r_kernel, kernel size). A linear layer gets y += s U_out Gᵀ U_inᵀ x, r_in n + r_in r_out +
    r_out m operations; a convolution three: 1x1 to r_in, the kernel between r_in and r_out, 1x1 to m.
    Start: G = 0, U ~ N(0, 1 / (2 r)), each by its own rank: the base's first output; at first only G has a gradient.
    Count: the sizes added up. Exact LoRA rank: min(r_in, r_out). n = input channels of a group, where there are groups.
    Source: Si et al. 2024; ranks and s as in its example for convolutions.
    Trap: the code builds the dense change in every forward, and fails on groups; G's first two axes are in, out.

    >>> from deltaw.methods import FLoRATucker
    >>> {k: p.shape for k, p in FLoRATucker(r_in=2, r_out=3).params(10, 6).items()}
    {'G': (2, 3), 'U_in': (6, 2), 'U_out': (10, 3)}
    """

    r_in: int = 16
    r_out: int = 16
    r_kernel: int = 2
    scale: float = 4.0

    def params(self, m: int, n: int, kernel: tuple[int, ...] = ()) -> Declared:
        positive(r_in=self.r_in, r_out=self.r_out, r_kernel=self.r_kernel)
        n //= math.prod(kernel)
        if self.r_in > n or self.r_out > m:
            raise ShapeError(f"r_in = {self.r_in} <= {n} inputs and r_out = {self.r_out} <= {m} outputs are needed")
        sizes = {"U_in": (n, self.r_in), "U_out": (m, self.r_out)}
        sizes |= {f"U_{t}": (k, min(self.r_kernel, k)) for t, k in enumerate(kernel)}
        frames = {name: Param(size, normal((0.5 / size[1]) ** 0.5)) for name, size in sizes.items()}
        return {"G": Param(tuple(size[1] for size in sizes.values()), zeros), **frames}

    def declare(self, site: Any) -> Declared:
        return self.params(*site.shape, tuple(site.module.kernel_size) if site.kind == "conv" else ())  # type: ignore[call-arg]

    def weight(self, W: Op, p: Tensors) -> Op:
        core = p.G.transpose(0, 1)
        for t in range(core.dim() - 2):  # every axis of the kernel in turn; the widened axis goes to the end
            core = core.movedim(2, -1) @ getattr(p, f"U_{t}").mT
        core, taps = core.flatten(1), core.shape[2:].numel()
        down = p.U_in.mT if taps == 1 else Kron(p.U_in.mT, Eye(taps, p.U_in))
        return W + self.scale * chain(p.U_out, core, down)
