"""Rewards and advantages of groups of completions, as pure functions.

N completions in groups of G that answer the same prompt, one group after another; T tokens each (padded); I items each.
Nothing here knows a model: log-probabilities, hidden states and hits come in as tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ShapeError


def grouped(x: Tensor, size: int) -> Tensor:
    """(N, ...) -> (N / size, size, ...)."""
    if size < 2 or len(x) % size:
        raise ShapeError(f"{len(x)} completions are no whole number of groups of {size} (at least 2 in a group)")
    return x.unflatten(0, (-1, size))


def advantages(rewards: Tensor, size: int, eps: float = 1e-4) -> Tensor:
    """(r - mean) / (std + eps) over each group of `size`; the standard deviation is that of a sample. Further axes (items)
    are standardised each by itself. Source: GRPO (arXiv:2402.03300). Trap: a group of equal rewards teaches nothing."""
    g = grouped(rewards, size)
    return ((g - g.mean(1, keepdim=True)) / (g.std(1, keepdim=True) + eps)).flatten(0, 1)


def unlikeliness(rewards: Tensor, logp: Tensor, size: int, beta: float = 0.25) -> Tensor:
    """R_i (1 - beta rank_i / G): rank_i = 0 ... G - 1 is the ascending place of completion i in its group by its mean
    log-probability `logp`, so the least likely one keeps its full reward and the most likely one loses most.

    Source: He et al. 2025, arXiv:2506.02355; direction and the division by G as in their code (the paper's text counts
    the other way round). Traps: of equal log-probabilities the first counts as the less likely; negative rewards would be
    raised by the factor.
    """
    order = grouped(logp, size).argsort(dim=1, stable=True)
    rank = order.argsort(dim=1).flatten(0, 1).to(rewards.dtype)
    return rewards * (1 - beta * rank / size)


def stable_ranks(H: Tensor, mask: Tensor) -> Tensor:
    """(N, T, d), (N, T) -> (N,): |H_i|_F² / |H_i|_2² over the tokens in the mask; 0 where there are none.

    Source: SR-GRPO, arXiv:2512.02807, a reward with H the last hidden states of the response. Reading: they are those of
    the frozen base, which the policy cannot move. Trap: it grows with the length of a response.
    """
    H = torch.where(mask.bool()[..., None], H, 0).to(torch.promote_types(H.dtype, torch.float32))
    top = torch.linalg.matrix_norm(H, 2).square()
    return H.square().sum((1, 2)) / top.clamp_min(torch.finfo(H.dtype).tiny)


# ---- lists: items of a completion as the unit of credit (Rank-GRPO)


def segments(breaks: Tensor, mask: Tensor) -> Tensor:
    """(N, T): the item that each token belongs to, from 0. breaks: how many item ends a token holds (line breaks, say); it
    still belongs to the item that it ends. Padding belongs to item 0 and is left out by the mask everywhere below."""
    breaks = breaks * mask
    return (breaks.cumsum(1) - breaks) * mask


def segment_mean_log_ratio(logp: Tensor, old: Tensor, seg: Tensor, mask: Tensor) -> Tensor:
    """(N, T): at each token the mean of logp - old over its segment, whose exp is a geometric mean of token ratios; 0 at padding.

    One segment for each token is the token level (GRPO), one for all the sequence level (GSPO), items lie between.
    Source: Rank-GRPO (Zhu et al. 2025, arXiv:2510.20150), as in their code, where all overflowing items are one segment: `seg.clamp(max=I)`.
    Trap: in the loss each token is clipped with its segment's ratio, so a long item weighs more than a short one.
    """
    ratio = (logp - old) * mask
    empty = ratio.new_zeros(len(seg), int(seg.max()) + 1 if seg.numel() else 1)
    sums = empty.scatter_add(1, seg, ratio)
    counts = empty.scatter_add(1, seg, mask.to(ratio.dtype))
    return (sums / counts.clamp(min=1)).gather(1, seg) * mask


def suffix_gain(hits: Tensor) -> Tensor:
    """(..., I): what comes from item i on, sum over j >= i of hits_j d_j, with d = 1, 1/log2 3, 1/log2 4, ... by place.

    Source: Rank-GRPO, the reward of an item: it answers for all that follows it, and for nothing before it.
    """
    place = torch.arange(hits.shape[-1], dtype=hits.dtype, device=hits.device)
    gains = hits / (place + 2).log2()  # the first is 1 / log2 2
    return gains.flip(-1).cumsum(-1).flip(-1)


def token_advantages(
    items: Tensor, seg: Tensor, mask: Tensor, end: Tensor, overflow: float = 0.0, exact: float = 0.0, early: float = 0.0
) -> Tensor:
    """(N, I) advantages of items -> (N, T) of tokens: each token has its item's, and three kinds have one of their own.

    end (N, T): the token with which a completion stops. Tokens after the I-th item have `overflow`; the stop has `exact` after I
    items, `early` before (and none of the item's). Source: Rank-GRPO, as in their code (0.1, -0.1, -0.1 there). Trap: a line
    break behind the I-th item opens another one, so the stop after it has `overflow` and not `exact`.
    """
    count = items.shape[1]
    inside = (seg < count) & mask.bool()
    over = (seg >= count) & mask.bool()
    out = items.gather(1, seg.clamp(max=count - 1)) * inside * ~end.bool() + overflow * over
    made = torch.where(mask.bool(), seg, -1).amax(1, keepdim=True) + 1
    stops = end.bool() & mask.bool()
    fits = (made >= count) & ~over.any(1, keepdim=True)
    return out + stops * (exact * fits + early * (made < count))
