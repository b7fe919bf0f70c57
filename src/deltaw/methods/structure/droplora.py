"""DropLoRA: dropout between the two factors of a LoRA."""

from __future__ import annotations

from ...errors import SpecError
from ...fused import Dropped
from ...ops import Eye, Op, chain
from ...sites import Site
from ...spec import Declared, Method, Tensors, method
from ..factors import pair


@method(paper="arXiv:2508.17337", claims=("better than LoRA on reasoning, code and instructions at no cost in inference",))
class DropLoRA(Method):
    """y = W x + b + s B D A x, s = alpha / r; in training D drops each of the r numbers A x with probability p and scales
    the others by 1 / (1 - p), for every token anew; in evaluation and exports D = I. A (r, n), B (m, r) trained.

    So every token trains a random subspace of the rank. Start as in LoRA: B = 0, the base's first output. Trained per
    site: r (m + n). Exact LoRA rank: r. Source: Zhang 2025. Its equation has one mask for all tokens; its code drops
    token by token, and so does this. Its input dropout is Drop(DropLoRA()).
    Trap: the mask acts once: one on B and the same one on A is the same mask. The variant of the code with learned masks is
    left out: its forward in evaluation and its merged weight differ.

    >>> from deltaw.methods import DropLoRA
    >>> {k: v.shape for k, v in DropLoRA(r=4).params(10, 6).items()}
    {'A': (4, 6), 'B': (10, 4)}
    """

    r: int = 32
    alpha: float = 64.0
    p: float = 0.5

    @property
    def scale(self) -> float:
        return self.alpha / self.r

    def params(self, m: int, n: int) -> Declared:
        if not 0.0 <= self.p < 1.0:
            raise SpecError(f"droplora drops with a probability p of [0, 1); found {self.p}")
        return pair(m, n, self.r)

    def declare(self, site: Site) -> Declared:
        # both are evaluated as a matrix, which is the mean over all masks
        if self.p and (site.kind == "expert" or getattr(site.module, "groups", 1) > 1):
            raise SpecError(f"{site.name}: what is between A and B cannot be dropped in an expert or a grouped convolution")
        return self.params(*site.shape)

    def weight(self, W: Op, p: Tensors) -> Op:
        D = Dropped(Eye(self.r, p.A), self.p) if p.training and self.p else Eye(self.r, p.A)
        return W + self.scale * chain(p.B, D, p.A)
