"""GLoRA: scaled, shifted and low-rank terms in the weight and in the bias."""

from __future__ import annotations

from typing import Any, Literal

from ...errors import SpecError
from ...ops import Affine, Hadamard, Map, Op, chain
from ...spec import Declared, Method, Param, Tensors, kaiming, method
from ..factors import positive


@method(paper="arXiv:2306.07967", start="rounding")
class GLoRA(Method):
    """W' = W + W ⊙ A + B, b' = b + b ⊙ D + E + W C; a layer without a bias has A and B only.

    A and B: "lora", A_d A_u with (m, r) (r, n); "vector", (m, 1) over all columns; "constant", (1,); or "none". C (n, 1):
    "lora", C_d C_u with (n, r) (r, 1); "vector"; or "none". D and E: "vector" (m,), "constant" (1,), or "none".
    Start: every term is 0 (U(±1/sqrt fan-in) in A_u, B_u, C_u): the base, up to rounding. Count: 2 r (m + n) + r (n + 1)
    + 2 by default. No plain LoRA equals it; "lora" needs the dense W. Source: the paper, as in HF PEFT.
    Trap: the paper searches the choices per layer (here: a plan's overrides). Several adapters all change the base's own
    W and b. Where one choice leaves nothing to train, as without a bias, it is refused.

    >>> from deltaw.methods import GLoRA
    >>> {k: v.shape for k, v in GLoRA(A_B="vector", C="none").params(10, 6).items()}
    {'A': (10, 1), 'B': (10, 1), 'D': (1,), 'E': (1,)}
    """

    r: int = 8
    A_B: Literal["lora", "vector", "constant", "none"] = "lora"
    C: Literal["lora", "vector", "none"] = "lora"
    D_E: Literal["vector", "constant", "none"] = "constant"

    def params(self, m: int, n: int, bias: bool = True) -> Declared:
        positive(r=self.r)
        sides = {"A": (self.A_B, (m, n)), "B": (self.A_B, (m, n))}
        sides |= {"C": (self.C, (n, 1)), "D": (self.D_E, (m,)), "E": (self.D_E, (m,))} if bias else {}
        out: Declared = {}
        for word, (kind, shape) in sides.items():
            if kind == "lora":
                out |= {f"{word}_d": Param((shape[0], self.r)), f"{word}_u": Param((self.r, shape[1]), kaiming)}
            elif kind != "none":
                out[word] = Param((1,) if kind == "constant" else (*shape[:1], *(1,) * len(shape[1:])))
        if not out:
            raise SpecError(f"glora has no term at a {m} x {n} layer {'with' if bias else 'without'} a bias: choose A_B")
        return out

    def declare(self, site: Any) -> Declared:
        return self.params(*site.shape, site.leaf().bias is not None)

    def layer(self, L: Affine, p: Tensors) -> Map:
        W, bias, (m, n), at = L.op, L.bias, L.op.shape, vars(p)
        new: Op = W + Hadamard(W, chain(p.A_d, p.A_u)) + chain(p.B_d, p.B_u) if "A_d" in at else W
        if "A" in at:
            new = chain(1 + p.A.flatten().expand(m), W) + chain(p.B.reshape(-1, 1).expand(m, 1), p.B.new_ones(1, n))
        if bias is not None and {"C", "C_d", "D"} & set(at):
            bias = bias * (1 + p.D) + p.E if "D" in at else bias
            c = p.C if "C" in at else p.C_d @ p.C_u if "C_d" in at else None
            bias = bias if c is None else bias + W(c[:, 0].to(W.like.dtype))
        return Affine(new, bias)
