"""SALT: leading singular values scaled and shifted, a LoRA in the frame of the others."""

from __future__ import annotations

from ...errors import ShapeError
from ...ops import Op, chain
from ...spec import Declared, Method, Param, Tensors, last, method, ones, uniform
from ..factors import positive


@method(paper="arXiv:2503.16055", claims=("2 to 5 % Dice over LoRA and over singular values alone, five medical sets",))
class SALT(Method):
    """W' = U blockdiag(relu(a ⊙ sigma_k + b), diag(sigma_rest) + X Y) Vᵀ, W = U diag(sigma) Vᵀ, p = min(m, n).

    a, b (k,), X (p - k, r), Y (r, p - k) trained; U, Vt, S and the rest of the frame U_rest, Vt_rest frozen. Applied as
    W x + U_k diag(relu(a sigma + b) - sigma) V_kᵀ x + U_rest X Y V_restᵀ x: the residual stays in W. k = ratio · p.
    Start: a = 1, b = 0, Y = 0, X ~ U(±sqrt(6 / (21 r))) (Kaiming, slope sqrt 20, as in the code): the base's first output.
    Count: 2 k + 2 r (p - k). Exact LoRA rank: k + r. About p (m + n) operations a token. The code's penalty
    |edit|_F + |X Y|_F (weight 0 there) belongs to the loss.
    Source: Elsayed et al. 2025 and its code; ratio = 1 / 2 is ours. Trap: the code applies relu to the whole core, X Y
    included, which deletes the negative half of the low-rank term; relu is here where values could turn negative.

    >>> from deltaw.methods import SALT
    >>> [(k, p.shape) for k, p in SALT(r=2).params(10, 6).items() if p.train]
    [('a', (3,)), ('b', (3,)), ('X', (3, 2)), ('Y', (2, 3))]
    """

    r: int = 4
    ratio: float = 0.5

    def params(self, m: int, n: int) -> Declared:
        p, k = min(m, n), int(self.ratio * min(m, n))
        positive(r=self.r)
        if not 1 <= k < p or self.r > p - k:
            raise ShapeError(f"ratio = {self.ratio} makes k = {k} of {p} singular values; 1 <= k <= {p} - r, r = {self.r}")

        def part(of: int, rest: bool) -> Param:
            cut = slice(k, p) if rest else slice(0, k)
            size = p - k if rest else k
            pick = (lambda s, _: s.svd(p)[0][:, cut]) if of == 0 else (lambda s, _: s.svd(p)[of][cut])
            return Param(((m, size), (size,), (size, n))[of], last(pick), train=False)

        out = {"a": Param((k,), ones), "b": Param((k,)), "X": Param((p - k, self.r), uniform((6 / 21 / self.r) ** 0.5))}
        out |= {"Y": Param((self.r, p - k)), "S": part(1, False), "U": part(0, False), "Vt": part(2, False)}
        return {**out, "U_rest": part(0, True), "Vt_rest": part(2, True)}

    def weight(self, W: Op, p: Tensors) -> Op:
        edit = chain(p.U, (p.a * p.S + p.b).relu() - p.S, p.Vt)
        return W + edit + chain(p.U_rest, p.X, p.Y, p.Vt_rest)
