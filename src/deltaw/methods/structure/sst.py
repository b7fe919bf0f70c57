"""SST: all singular values of a weight are trained, and a changing few of its singular vectors."""

from __future__ import annotations

from typing import Any

from torch import Tensor, int64

from ...ops import Op, chain
from ...spec import RULES, Declared, Method, Param, Start, Tensors, last, method

CLAIM = "closes 97 % of the gap in perplexity between other low-rank methods and full-rank training at 1.3B"


@method(paper="arXiv:2405.15481", start="rounding", claims=(CLAIM,))
class SST(Method):
    """W' = U' diag(S) V', of the SVD of W, q = min(m, n): U (m, q), V (q, n) frozen, with columns and rows I replaced by u, v.

    S (q,), u (m, r), v (r, n) trained; I (r,) is drawn anew every `every` steps by the rule "sst", which also keeps S >= 0
    and vectors at length 1. Gradients of the vectors are the source's enhanced ones: G v_i for u_i and Gᵀ u_i for v_i, G =
    dL/dW', without the factor S_i (nothing would move where S_i is small). The first output is the base's up to rounding.
    Count: q + r (m + n). Source: Zhao et al. 2025, read from summaries: neither its text nor its code was to be had.
    Trap: all of U and V is kept, frozen: less optimiser state than W would have, but more numbers than W.

    >>> from deltaw.methods import SST
    >>> {k: p.shape for k, p in SST(r=2).params(10, 6).items() if p.train}
    {'S': (6,), 'u': (10, 2), 'v': (2, 6)}
    """

    r: int = 64
    every: int = 200
    warmup: int = 20

    def params(self, m: int, n: int) -> Declared:
        q = min(m, n)

        def part(which: int, picked: bool) -> Any:
            def fill(start: Start, _: Any) -> Tensor:
                t = start.svd(q)[which]
                return (t[:, start.p.I] if which == 0 else t[start.p.I]) if picked else t

            return last(fill)

        def where(start: Start, _: Any) -> Tensor:
            start.room(self.r)
            return start.choose(self.r, q)

        I = Param((self.r,), where, False, dtype=int64, ruled=True)  # noqa: E741
        U, V = (Param(shape, part(i, False), False, ruled=True) for shape, i in (((m, q), 0), ((q, n), 2)))
        u, v = Param((m, self.r), part(0, True)), Param((self.r, n), part(2, True))
        return {"I": I, "U": U, "V": V, "S": Param((q,), part(1, False)), "u": u, "v": v}

    def weight(self, W: Op, p: Tensors) -> Op:
        u, v = p.u.detach(), p.v.detach()
        zero = chain(p.u - u, v) + chain(u, p.v - v)  # through it the enhanced gradients come
        return chain(p.U.index_copy(1, p.I, u), p.S, p.V.index_copy(0, p.I, v)) + zero

    def rules(self) -> tuple[Any, ...]:
        return (RULES["sst"](self.every, self.warmup),)
