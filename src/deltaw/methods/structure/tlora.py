"""TLoRA: a transform of the input near the identity, and a residual, both as tensor rings."""

from __future__ import annotations

from typing import Literal

from ...errors import SpecError
from ...ops import Op, chain
from ...spec import Declared, Method, Param, Tensors, method, normal, zeros
from ..factors import positive
from ..ring import Ring, chained, identity, split


@method(paper="arXiv:2501.08727", start="rounding", claims=("the transform lowers the rank that the residual needs",))
class TLoRA(Method):
    """W' = W T + D: T[i, j] = tr(A1[i1, j1] … AD[iD, jD]), D[o, i] = tr(B1[o1] … BD[oD] C1[i1] … CD[iD]).

    n = I1 … ID, m = J1 … JD as even as they divide; A_d (I_d, I_d, R, R), B_d (J_d, Q, Q), C_d (I_d, Q, Q), Q = `R_res`, all
    trained. T x costs n (R² (I1 + ID) + R³ (I2 + …)) a token, D x is a LoRA of rank Q²; no n x n, no m x n.
    Start: T = I and B1 = 0, the base up to rounding. "spread": A_d has I in slot (1, 1), small noise in rows 2 … R of the
    slots for d >= 2, 0 elsewhere. "paper": I / R in all slots, whose equal gradients keep T a plain Kronecker product at
    any R. C's product has the deviation Q / n, B_d 1 / sqrt Q (reading of its mu-P start, as is the split into factors).
    Count: R² sum I_d² + Q² sum (I_d + J_d). No plain LoRA equals it. Source: Tao et al. 2025, TLoRA(R, Q); its penalty
    |T - I|² is `deltaw.methods.ring.from_identity`. Trap: T acts on the input; a prime n leaves one core that is n x n.

    >>> from deltaw.methods import TLoRA
    >>> {k: p.shape for k, p in TLoRA(D=2).params(12, 6).items() if k[1] == "1"}
    {'A1': (2, 2, 2, 2), 'B1': (3, 4, 4), 'C1': (2, 4, 4)}
    """

    R: int = 2
    R_res: int = 4
    D: int = 3
    ring: Literal["spread", "paper"] = "spread"

    def params(self, m: int, n: int) -> Declared:
        positive(R=self.R, R_res=self.R_res)
        if self.D < 2:
            raise SpecError(f"a ring has D >= 2 cores; found D = {self.D}")
        rows, columns, Q, out = split(m, self.D), split(n, self.D), self.R_res, {}
        deviation = (Q / n / Q ** ((self.D - 1) / 2)) ** (1 / self.D)
        for d, (J, size) in enumerate(zip(rows, columns), 1):
            out[f"A{d}"] = Param((size, size, self.R, self.R), identity(self.ring == "spread", d > 1))
            out[f"B{d}"] = Param((J, Q, Q), normal(Q**-0.5) if d > 1 else zeros)
            out[f"C{d}"] = Param((size, Q, Q), normal(deviation))
        return out

    def weight(self, W: Op, p: Tensors) -> Op:
        A, B, C = ([getattr(p, f"{w}{d}") for d in range(1, self.D + 1)] for w in "ABC")
        return chain(W, Ring(A)) + chain(chained(B).flatten(1), chained(C).mT.flatten(1).mT)
