"""NoRA: a LoRA inside the frozen principal factors of W."""

from __future__ import annotations

from torch import Tensor

from ...errors import ShapeError
from ...ops import Op, chain
from ...spec import Declared, Method, Param, Start, Tensors, kaiming, last, method


@method(paper="arXiv:2408.10280", claims=("better than LoRA and its variants with fewer trained parameters",))
class NoRA(Method):
    """y = W x + b + s B_o B_i A_i A_o x, s = alpha / q. Frozen, from W = U S Vᵀ: B_o (m, r) = U_r sqrt(S_r), A_o (r, n) =
    sqrt(S_r) V_rᵀ; trained: B_i (r, q), A_i (q, r), a LoRA of rank q < r between them.

    Start: A_i ~ U(±1/sqrt r), B_i = 0: the base's first output. Trained per site: 2 r q, whatever m and n; a token costs
    r (m + n) + 2 r q. Exact LoRA rank: q (B = B_o B_i, A = A_i A_o), inside U_r and V_r. Source: Lin et al. 2024: the
    nesting and the freezing are in its abstract; roots of S on both sides, s, the zero start and the sizes are our reading.
    Trap: public code trains the outer factors too, leaves out S, and moves the base; that is another method. The frame is
    stored, because the signs of singular vectors differ between libraries.

    >>> from deltaw.methods import NoRA
    >>> {k: v.shape for k, v in NoRA(r=4, q=2).params(10, 6).items() if v.train}
    {'A_i': (2, 4), 'B_i': (4, 2)}
    """

    r: int = 64
    q: int = 16
    alpha: float = 16.0

    @property
    def scale(self) -> float:
        return self.alpha / self.q

    def params(self, m: int, n: int) -> Declared:
        if not 1 <= self.q <= self.r <= min(m, n):
            raise ShapeError(
                f"nora needs 1 <= q <= r <= {min(m, n)} directions of a {m} x {n} weight; found q = {self.q}, r = {self.r}"
            )

        def left(start: Start, _: tuple[int, ...]) -> Tensor:
            U, S, _V = start.svd(self.r)
            return U * S.sqrt()

        def right(start: Start, _: tuple[int, ...]) -> Tensor:
            _U, S, V = start.svd(self.r)
            return S.sqrt()[:, None] * V

        inner = {"A_i": Param((self.q, self.r), kaiming), "B_i": Param((self.r, self.q))}
        A_o, B_o = Param((self.r, n), last(right), train=False), Param((m, self.r), last(left), train=False)
        return {**inner, "A_o": A_o, "B_o": B_o}

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + self.scale * chain(p.B_o, p.B_i, p.A_i, p.A_o)
