"""From scores to the weights of probes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import SpecError


def shape_fitness(scores: Tensor, group_size: int = 0) -> Tensor:
    """(f - mean) / sqrt(var + 1e-5), in float64: the mean over each `group_size` neighbours (those with the same question; 0: over
    all), the variance over everybody, around the mean of everybody.

    Source: Sarkar et al. 2025; as in their code. Trap: a group all of whose members score alike says nothing, and its variance
    between groups still shrinks the others' say.
    """
    f = scores.detach().to("cpu", torch.float64)
    if f.dim() != 1 or not bool(torch.isfinite(f).all()):
        wrong = [i for i, v in enumerate(f.flatten().tolist()) if not abs(v) < float("inf")]
        raise SpecError(
            f"one finite score per member was expected; found shape {tuple(f.shape)}, not finite: members {wrong[:5]}"
        )
    if group_size and len(f) % group_size:
        raise SpecError(f"groups of {group_size} do not divide a population of {len(f)}")
    mean = f.reshape(-1, group_size).mean(1, keepdim=True).expand(-1, group_size).flatten() if group_size else f.mean()
    return (f - mean) / (f.var(correction=0) + 1e-5).sqrt()
