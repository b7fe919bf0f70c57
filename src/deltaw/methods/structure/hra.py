"""HRA: a chain of Householder reflections of the input."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import ShapeError
from ...ops import Eye, Op, chain
from ...spec import Declared, Method, Param, Start, Tensors, kaiming, method


@method(paper="arXiv:2405.17484", start="rounding", claims=("fewer parameters than OFT and BOFT at better scores",))
class HRA(Method):
    """W' = W (I - 2 u_1 u_1ᵀ) … (I - 2 u_r u_rᵀ), u_i = U_i / |U_i| the columns of U (n, r), trained. y = W' x + b.

    Applied in its compact form, 2 n r operations a token: the product is I - Uh T Uhᵀ with Uh the unit columns and
    T = (I/2 + striu(Uhᵀ Uh))⁻¹, so W' - W = -(W Uh T) Uhᵀ has rank <= r (here r: every reflection is kept).
    Start: adjacent columns are equal and cancel, so W' = W up to rounding; needs an even r (an odd r can be loaded).
    Trainable per site: n r. Exact LoRA rank: r. Singular values of W are kept, det = (-1)^r.
    Source: Yuan et al. 2024; order and start as in HF PEFT.
    Trap: the Gram-Schmidt variant divides by zero at this start, so it is left out. A penalty |I - Uhᵀ Uh| belongs to
    the loss. On embeddings and convolutions the input side is a table or a patch, and this is expensive.

    >>> from deltaw.methods import HRA
    >>> HRA(r=4).params(10, 6)["U"].shape
    (6, 4)
    """

    r: int = 8

    def params(self, m: int, n: int) -> Declared:
        if not 1 <= self.r < n:
            raise ShapeError(f"hra needs 1 <= r < {n} reflections of vectors of size {n}; found r = {self.r}")
        return {"U": Param((n, self.r), self.paired)}

    def paired(self, start: Start, shape: tuple[int, ...]) -> Tensor:
        if self.r % 2:
            raise ShapeError(f"hra starts from pairs of equal reflections: r must be even; found r = {self.r}")
        return kaiming(start, (shape[0], self.r // 2)).repeat_interleave(2, 1)

    def weight(self, W: Op, p: Tensors) -> Op:
        U = p.U / torch.linalg.vector_norm(p.U, dim=0)
        eye = torch.eye(self.r, dtype=U.dtype, device=U.device)
        T = torch.linalg.solve_triangular(eye / 2 + torch.triu(U.mT @ U, 1), eye, upper=True)
        return chain(W, Eye(W.shape[1], U) + chain(-U, T, U.mT))
