"""LoCA: a few cosine coefficients of the update, at places that are learned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...ops import Op
from ...spec import Declared, Method, Param, Tensors, method
from ..factors import positive
from ..transforms import Between, Coefficients, Cosine


class Probe(torch.autograd.Function):
    """(a (k,), l (2, k)) -> a and four zeros each: coefficients at i ± 1 and j ± 1, there for their gradient alone.

    With K the gradient of all coefficients l gets a / 2 (K[i + 1, j] - K[i - 1, j]), in j alike."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, l: Tensor) -> Tensor:  # noqa: E741
        ctx.save_for_backward(a)
        return torch.cat((a, a.new_zeros(4 * len(a))))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:  # type: ignore[override]
        here, below, above, right, left = g.chunk(5)
        return here, ctx.saved_tensors[0] / 2 * torch.stack((below - above, right - left))


@method(paper="arXiv:2502.06820", claims=("learned places beat random ones; cosines are as expressive as Fourier coefficients",))
class LoCA(Method):
    """W' = W + alpha C_mᵀ S C_n, C the orthonormal DCT-II, S zero but for sums of a_t at (i_t, j_t), the rounded places.

    Trained: a (k,), started at 0, and l (2, k) ~ U(0, 1): (i, j) = round(clamp(l, 0, 0.999) (m - 1, n - 1)). l learns by
    finite differences (`Probe`); the update rule "loca" cuts them to ±1 and takes a and l in turns, as the paper does.
    Count: 3 k. k + n log n + m log m operations a token; not low-rank. Source: the paper and the authors' code,
    which also multiplies the difference by m - 1 (n - 1): Adam does not see it, and a cut of sums could not be exact.
    Trap: at a = 0 places have no gradient, so a goes first; places at one spot add up and waste coefficients.

    >>> from deltaw.methods import LoCA
    >>> {k: v.shape for k, v in LoCA(k=40).params(10, 6).items()}
    {'a': (40,), 'l': (2, 40)}
    """

    k: int = 1000
    alpha: float = 1.0

    def params(self, m: int, n: int) -> Declared:
        positive(k=self.k)
        return {"a": Param((self.k,)), "l": Param((2, self.k), lambda s, shape: 0.5 + s.uniform(shape, 0.5))}

    def weight(self, W: Op, p: Tensors) -> Op:
        (m, n), a, at = W.shape, self.alpha * p.a, p.l.clamp(0, 0.999)
        i, j = (at.detach() * at.new_tensor([[m - 1], [n - 1]])).round().long()
        if p.l.requires_grad and torch.is_grad_enabled():
            a, up, left = Probe.apply(a, at), (i - 1).clamp(min=0), (j - 1).clamp(min=0)
            i, j = torch.cat((i, (i + 1).clamp(max=m - 1), up, i, i)), torch.cat((j, j, j, (j + 1).clamp(max=n - 1), left))
        return W + Between(Cosine(m, a).T, Coefficients(a, i, j, (m, n)), Cosine(n, a))
