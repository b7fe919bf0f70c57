"""Which training examples an adapter is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...attach import Adapted
from ...errors import SpecError, TargetError, nearest

Loss = Callable[[], Tensor]


@dataclass(frozen=True)
class Attribution:
    """shares: {tensor: (examples, ...)}, whose sum over the examples is the tensor, up to `residual` (relative; 0 at a
    stationary point, and the measure of how far to believe the rest)."""

    shares: dict[str, Tensor]
    residual: float
    adapted: Adapted

    def weights(self) -> Tensor:
        """One number per example, how much of the tensors it accounts for: they sum to 1 at a stationary point."""
        trained = self.adapted.trainable()
        size = sum(float(trained[k].detach().double().square().sum()) for k in self.shares)
        parts = [(s.double() * trained[k].detach().double()).flatten(1).sum(1) for k, s in self.shares.items()]
        return torch.stack(parts).sum(0) / max(size, 1e-300)

    @torch.no_grad()
    def outputs(self, run: Callable[[], Tensor]) -> Tensor:
        """(examples, *output): what each example adds to the output of `run()`.

        Exact where the output is linear in the tensors: of one site's B and nothing nonlinear behind it, say.
        """
        trained = self.adapted.trainable()
        kept = {k: trained[k].detach().clone() for k in self.shares}
        try:
            rows = []
            for i in range(-1, len(next(iter(self.shares.values())))):
                for k, s in self.shares.items():
                    trained[k].copy_(torch.zeros_like(s[0]) if i < 0 else s[i])
                rows.append(run().detach().clone())
        finally:
            for k, t in kept.items():
                trained[k].copy_(t)
        return torch.stack(rows[1:]) - rows[0]


def attribute(adapted: Adapted, losses: Sequence[Loss], decay: float, tensors: Sequence[str] | None = None) -> Attribution:
    """Split trained tensors into what every example put there.

    With a loss sum_i L_i + decay/2 |t|², a stationary t is -1/decay times the sum of the examples' gradients: each term is
    that example's share. For W + s B A with A fixed B = -(s/decay) sum_i G_i Aᵀ, so the change of W is -(s²/decay) sum_i G_i AᵀA,
    G_i the gradient of L_i in the whole weight. losses: one function per example, which runs
    the model. decay: of the sum, so N times that of a mean over N examples, and L2, not decoupled. tensors: names in
    `adapted.trainable()`, by default all.
    Source: representer points (Yeh et al. 2018, arXiv:1811.09720; for low-rank models Tsai et al. 2023, arXiv:2305.20002);
    this form for adapters is ours. Trap: AdamW's decoupled decay has another stationary point; look at the residual.
    """
    trained = adapted.trainable()
    names = list(trained) if tensors is None else list(tensors)
    for name in names:
        if name not in trained:
            raise TargetError(f"'{name}' is no trained tensor of '{adapted.name}'{nearest(name, trained)}")
    if not decay > 0 or not losses:
        raise SpecError(f"attribution needs examples and a decay > 0; found {len(losses)} examples, decay {decay}")
    rows: dict[str, list[Tensor]] = {n: [] for n in names}
    for loss in losses:
        found: Sequence[Any] = torch.autograd.grad(loss(), [trained[n] for n in names], allow_unused=True)
        for n, g in zip(names, found):
            rows[n].append(torch.zeros_like(trained[n]) if g is None else -g.detach() / decay)
    shares = {n: torch.stack(r) for n, r in rows.items()}
    off = sum(float((s.double().sum(0) - trained[n].detach().double()).square().sum()) for n, s in shares.items())
    size = sum(float(trained[n].detach().double().square().sum()) for n in names)
    return Attribution(shares, (off / max(size, 1e-300)) ** 0.5, adapted)
