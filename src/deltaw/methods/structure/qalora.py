"""QA-LoRA: a LoRA on means of groups of inputs, which the zero points of a quantised weight can take up."""

from __future__ import annotations

import torch
from torch import Tensor

from ...ops import Op, chain
from ...spec import Declared, Method, Param, Tensors, kaiming, method
from ..factors import divides, positive


class Groups(Op):
    """P (n / g, n): the means of g neighbouring inputs."""

    constant, like = True, property(lambda self: self.kept)

    def __init__(self, g: int, n: int, like: Tensor):
        self.g, self.kept, self.shape = g, like, (n // g, n)

    def __call__(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.g)).mean(-1)

    def rmv(self, y: Tensor) -> Tensor:
        return y.repeat_interleave(self.g, -1) / self.g

    def cols(self, i: Tensor) -> Tensor:
        return (i.unsqueeze(-1) // self.g == torch.arange(self.shape[0], device=i.device)).to(self.kept.dtype) / self.g


@method(paper="arXiv:2309.14717", claims=("the merged weight stays in its 4 bits: only zero points change",))
class QALoRA(Method):
    """y = W x + b + s B A P x, s = alpha / r, P x the means of g = `group_size` neighbouring inputs. A (r, n / g), B (m, r).

    The change is the same for all inputs of a group: where W is quantised in the same groups, W' = scale (q - z) with
    other zero points z and the same integers q. Start: A ~ U(±1/sqrt fan-in), as LoRA's, B = 0: the base.
    Count: r (n / g + m). Exact LoRA rank: r. Source: Xu et al. 2023, as in the authors' code.
    Trap: HF PEFT multiplies the means by the number of groups, n / g times this; it has QA-LoRA for GPTQ layers only and
    does not merge it, so its files are refused. g has to be the quantiser's group.

    >>> from deltaw.methods import QALoRA
    >>> {k: v.shape for k, v in QALoRA(r=4, group_size=3).params(10, 6).items()}
    {'A': (4, 2), 'B': (10, 4)}
    """

    r: int = 8
    alpha: float = 8.0
    group_size: int = 16

    @property
    def scale(self) -> float:
        return self.alpha / self.r

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r)
        divides("group_size", self.group_size, n=n)
        return {"A": Param((self.r, n // self.group_size), kaiming), "B": Param((m, self.r))}

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + self.scale * chain(p.B, p.A, Groups(self.group_size, W.shape[1], p.A))
