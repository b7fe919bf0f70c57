"""LoRA-XS: only a small core between the singular vectors of W is trained."""

from __future__ import annotations

from torch import Tensor

from ...errors import ShapeError
from ...ops import Op, chain
from ...spec import Declared, Method, Param, Start, Tensors, last, method, normal


@method(paper="arXiv:2405.17604", claims=("r² parameters a site, about a hundredth of LoRA's, at similar accuracy",))
class LoRAXS(Method):
    """y = W x + b + s B R A x, s = alpha / r. R (r, r) trained; frozen A (r, n) = S_r V_rᵀ, B (m, r) = U_r of W = U S Vᵀ.

    Start: R = 0, so the first output is the base's, and R still learns, because dL/dR = s Bᵀ G Aᵀ does not vanish.
    The authors' code draws R ~ N(0, 1e-5²): std=1e-5. W keeps its principal part (unlike pissa).
    Trainable per site: r². Exact LoRA rank: r. Source: Bałazy et al. 2024 and its code, which factorises Wᵀ.
    Trap: the singular values sit on the input side, A; on B or as a root on both sides they change the learning rate
    of every direction. The singular vectors' signs differ between libraries: compare B R A, never the factors.

    >>> from deltaw.methods import LoRAXS
    >>> [(k, p.shape) for k, p in LoRAXS(r=4).params(10, 6).items() if p.train]
    [('R', (4, 4))]
    """

    r: int = 16
    alpha: float = 16.0
    std: float = 0.0

    @property
    def scale(self) -> float:
        return self.alpha / self.r

    def params(self, m: int, n: int) -> Declared:
        if not 1 <= self.r <= min(m, n):
            raise ShapeError(f"lora_xs needs 1 <= r <= {min(m, n)} singular triplets of a {m} x {n} weight; r = {self.r}")

        def right(start: Start, _: tuple[int, ...]) -> Tensor:
            U, S, V = start.svd(self.r)
            return S[:, None] * V

        return {
            "R": Param((self.r, self.r), normal(self.std)),
            "A": Param((self.r, n), last(right), train=False),
            "B": Param((m, self.r), last(lambda start, _: start.svd(self.r)[0]), train=False),
        }

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + self.scale * chain(p.B, p.R, p.A)
