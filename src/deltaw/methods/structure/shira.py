"""SHiRA: a sparse update at fixed positions."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, int64

from ...errors import ShapeError
from ...ops import Op
from ...spec import RULES, Declared, Method, Param, Start, Tensors, method
from ..sparse import Sparse, stripes, top


@method(paper="arXiv:2406.13175", claims=("no cost at inference, fast switching, less concept loss when fused",))
class SHiRA(Method):
    """W' = W + scatter(I, v): v (K,) trained, I (K,) frozen flat positions in W, K = r (m + n) as in LoRA.

    mask: "random"; "wm", the largest |W|; "struct", the diagonal and evenly spaced rows from `first` on (adapters on other
    rows disturb each other little); "grad" and "snip", the largest |G| and |W ⊙ G| with G the sum of the gradients of the
    first `steps` steps, in which nothing moves. Start: v = 0, the base's first output. No plain LoRA equals it.
    Source: Bhardwaj et al. 2024; "random" as in HF PEFT. Trap: I is chosen once, before training, then stored (int64).

    >>> from deltaw.methods import SHiRA
    >>> SHiRA(r=2).params(10, 6)["v"].shape
    (32,)
    """

    r: int = 32
    mask: Literal["random", "wm", "struct", "grad", "snip"] = "random"
    steps: int = 1
    first: int = 0

    def params(self, m: int, n: int) -> Declared:
        if not 0 < (K := self.r * (m + n)) <= m * n:
            raise ShapeError(f"r = {self.r} asks for {K} of the {m * n} positions of a {m} x {n} weight")

        def where(start: Start, _: tuple[int, ...]) -> Tensor:
            if self.mask == "struct":
                return stripes(m, n, K, self.first)
            return top(start.dense().abs(), K) if self.mask == "wm" else start.choose(K, m * n)

        return {"v": Param((K,)), "I": Param((K,), where, train=False, dtype=int64)}

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + Sparse(p.I, p.v, W.shape)

    def rules(self) -> tuple[Any, ...]:
        return (RULES["calibrate"](self.steps),) if self.mask in ("grad", "snip") else ()

    def calibrated(self, view: Any, G: Tensor) -> dict[str, Tensor]:
        score = G if self.mask == "grad" else G * view.base()
        return {"v": view.p.v * 0.0, "I": top(score.abs(), len(view.p.v))}
