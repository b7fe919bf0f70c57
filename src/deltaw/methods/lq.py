"""Low-rank plus quantised: W ~ L1 L2 + Q, and which codec each weight gets under a budget of bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ..codecs import NF, Unsigned
from ..ops import random as rng
from .leading import leading
from .rank import allocators


def sides(F: Tensor, least: float = 1e-12) -> tuple[Tensor, Tensor]:
    """(d_row (m,), d_col (n,)) of a Fisher diagonal: roots of its row and column means (the mean first, then the root), above 0."""
    F = F.double()
    top = F.mean().clamp(min=1e-300)
    return ((F.mean(d) + least * top).sqrt() for d in (1, 0))  # type: ignore[return-value]


def low_rank(M: Tensor, r: int, F: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The best rank-r L1 L2 of M in the metric diag(d_row) . diag(d_col), sqrt(S) on both sides."""
    M = M.double()
    row, col = (torch.ones_like(M[:, 0]), torch.ones_like(M[0])) if F is None else sides(F)
    U, S, V = leading(row[:, None] * M * col, r, lambda shape: rng.normal(shape, rng.key("lq"), 1.0))
    root = S.sqrt()
    return (U * root) / row[:, None], (root[:, None] * V) / col


def size(E: Tensor, F: Tensor | None) -> float:
    return float((E.double().square() * (1.0 if F is None else F.double())).sum())


def decompose(W: Tensor, r: int, codec: Any, F: Tensor | None = None, rounds: int = 20) -> tuple[Tensor, Tensor, Tensor, list[float]]:
    """(L1 (m, r), L2 (r, n), Q (m, n) decoded, errors by round): Q = 0; repeat L1 L2 = low_rank(W - Q), Q = decode(encode(W - L1 L2)), until the
    error |sqrt(F) * (W - L1 L2 - Q)|² rises; the best round is returned (the code returns the last). Factor first, quantise second,
    where LoftQ has it the other way round. Source: LQ-LoRA, Guo et al. 2024.
    """
    W = W.detach().float()
    Q, best, errors = torch.zeros_like(W), None, list[float]()
    for _ in range(rounds):
        L1, L2 = (t.float() for t in low_rank(W - Q, r, F))
        rest = W - L1 @ L2
        Q = codec.decode(codec.encode(rest), tuple(W.shape))
        errors.append(size(rest - Q, F))
        if best is not None and errors[-1] >= min(errors[:-1]):
            break
        best = (L1, L2, Q)
    assert best is not None
    return (*best, errors)


def options(
    bits: Sequence[int] = (2, 3, 4, 8), scale_bits: Sequence[int] = (2, 3, 4, 8), dtypes: Sequence[torch.dtype] = (torch.bfloat16, torch.float16, torch.float32),
    blocks: Sequence[int] = (16, 32, 64), outer: Sequence[int] = (16, 64, 256),
) -> list[NF]:  # fmt: skip
    """All settings (b, b0, b1, B0, B1): 432 with the paper's lists."""
    return [NF(b, B0, Unsigned(b0, B1, d)) for b, b0, d, B0, B1 in product(bits, scale_bits, dtypes, blocks, outer)]


def allot(
    weights: Mapping[str, Tensor], r: int, budget: float, choices: Sequence[Any], fishers: Mapping[str, Tensor] | None = None, rounds: int = 1
) -> dict[str, Any]:
    """site -> codec: least sum of |sqrt(F) * (W - L1 L2 - Q)|² at no more than `budget` bits a number on average; an integer linear programme
    (methods.rank.allocators.knapsack). Costs are scaled to a total of 1000, weights to bits per number of all."""
    whole = sum(W.numel() for W in weights.values())
    damage, weight = [], []
    for name, W in weights.items():
        F = None if fishers is None else fishers[name].to(W.device)
        damage.append([decompose(W, r, c, F, rounds)[3][-1] for c in choices])
        weight.append([c.bits(*W.shape) * W.numel() / whole for c in choices])
    total = sum(min(d) for d in damage) or 1.0
    found = allocators.knapsack([[1000 * v / total for v in d] for d in damage], weight, budget)
    return {name: choices[k] for name, k in zip(weights, found)}
