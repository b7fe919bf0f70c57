"""Hydra: a low-rank branch beside a layer and one behind it."""

from __future__ import annotations

from ...errors import SpecError
from ...ops import Affine, Eye, Map, Op, chain
from ...spec import Declared, Method, Param, Tensors, kaiming, method
from ..factors import pair


@method(paper="arXiv:2309.06922", start="rounding", claims=("both branches beat either one at equal parameters",))
class Hydra(Method):
    """z = W x + b, y = z + s B_p A_p x + s B_s A_s z. A_p (r_p, n), B_p (m, r_p), A_s (r_s, m), B_s (m, r_s), all trained.

    W' = (I + s B_s A_s) W + s B_p A_p, b' = b + s B_s A_s b. The parallel pair learns new features, the sequential one
    recombines those of W; r_s = 0 is LoRA, r_p = 0 stays in W's row space. Start: A_p, A_s ~ U(±1/sqrt fan-in), B_p = B_s
    = 0, the base up to rounding (its bias is added later). Trained per site: r_p (m + n) + 2 r_s m, as many operations a
    token beside W x, which is computed once, by the base's own kernel. Exact LoRA rank: r_p + r_s (A = [A_p; A_s W]).
    Source: Kim et al. 2023; r as in the authors' vision code, which also trains biases inside the branches.
    Trap: z contains the bias, so an exported LoRA needs b' besides. The authors' merge reads the MLP's weight by mistake.

    >>> from deltaw.methods import Hydra
    >>> {k: v.shape for k, v in Hydra(r_p=2, r_s=3).params(10, 6).items()}
    {'A_p': (2, 6), 'B_p': (10, 2), 'A_s': (3, 10), 'B_s': (10, 3)}
    """

    r_p: int = 2
    r_s: int = 2
    scale: float = 1.0

    def params(self, m: int, n: int) -> Declared:
        if min(self.r_p, self.r_s) < 0 or self.r_p + self.r_s < 1:
            raise SpecError(f"hydra needs ranks r_p, r_s >= 0, not both 0; found r_p = {self.r_p}, r_s = {self.r_s}")
        beside = {f"{w}_p": q for w, q in pair(m, n, self.r_p).items()} if self.r_p else {}
        behind = {"A_s": Param((self.r_s, m), kaiming), "B_s": Param((m, self.r_s))} if self.r_s else {}
        return {**beside, **behind}

    def layer(self, L: Affine, p: Tensors) -> Map:
        op: Op = L.op
        bias = L.bias
        if self.r_s:
            D = self.scale * chain(p.B_s, p.A_s)
            op = chain(Eye(op.shape[0], p.B_s) + D, op)
            bias = None if bias is None else bias + D(bias)
        if self.r_p:
            op = op + self.scale * chain(p.B_p, p.A_p)
        return Affine(op, bias)
