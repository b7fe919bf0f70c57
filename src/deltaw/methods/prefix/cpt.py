"""Context-aware prompt tuning: a context of examples, moved a little in embedding space."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ...errors import SpecError
from ...ops import Affine, Map
from ...sites.prefix import Prefix
from ...spec import Declared, Method, Param, Start, Tensors, method, zeros
from ..rules.bound import Bound
from ..soft import spoken


@method(paper="arXiv:2410.17222", start="none: the context is read from the first step on, as in in-context learning")
class CPT(Method):
    """The model reads [E + D; E(x)]: E (v, d) frozen embeddings of the context's token ids, D (v, d) trained, |D_i| <= e_i.

    types, one per token: 1, 2, 3 modulo 4 an example's input template, input, output template, 0 its answer (which does not
    move), 0 itself nothing to move; numbers grow by 4 per example. e_i = sqrt(d / 2048) times `eps` (inputs) or `eps_format`
    (templates). Start: D = 0. Trained: v d (those of the frozen rows stay 0). The bound is kept by projection
    after every step of `adapted.optimizer`. `deltaw.context_loss(adapted, batch, decay)` learns the context's answers too.
    Source: Blau et al. 2024, as in PEFT. Does not merge.
    Trap: with types of PEFT's default (all 1) no token of the context is an answer.

    >>> from deltaw.methods import CPT
    >>> {k: p.shape for k, p in CPT(ids=(5, 6, 7), types=(1, 2, 4)).params(48, 6).items()}
    {'E': (3, 6), 'e': (3,), 'D': (3, 6)}
    """

    sites: ClassVar[str] = "prefix"
    ids: tuple[int, ...] = (0,)
    types: tuple[int, ...] = ()
    eps: float = 0.1
    eps_format: float = 0.1

    def params(self, m: int, n: int) -> Declared:
        if not self.ids or (self.types and len(self.types) != len(self.ids)):
            raise SpecError(f"cpt needs token ids and one type for each; found {len(self.ids)} and {len(self.types)}")
        v, types = len(self.ids), self.types or (1,) * len(self.ids)

        def bounds(start: Start, _: tuple[int, ...]) -> Tensor:
            size = {1: self.eps_format, 2: self.eps, 3: self.eps_format}
            return torch.tensor([size.get(t % 4, 0.0) for t in types]) * (n / 2048) ** 0.5

        frozen = {"E": Param((v, n), spoken(self.ids, ""), train=False), "e": Param((v,), bounds, train=False)}
        return {**frozen, "D": Param((v, n), zeros)}

    def answers(self) -> tuple[tuple[int, ...], list[int]]:  # what `context_loss` asks for
        return self.ids, [0 if t % 4 else t for t in self.types or (1,) * len(self.ids)]

    def rules(self) -> tuple[Any, ...]:
        return (Bound(tensor="D", by="e"),)

    def layer(self, L: Affine, p: Tensors) -> Map:
        return Prefix(tokens=p.E + p.D * (p.e > 0).to(p.D.dtype)[:, None])
