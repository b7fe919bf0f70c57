"""LQ-LoRA: errors by round, the weighted SVD, r = min(m, n), the programme against all choices."""

from __future__ import annotations

from itertools import product

import torch

from ....codecs import NF, Unsigned
from ....methods import lq
from ...laws.base import close, must
from ...tiny import values


def check() -> str:
    W, codec = values(24, 20, name="W", dtype=torch.float32), NF(3, 16, Unsigned(8, 16))
    L1, L2, Q, errors = lq.decompose(W, 4, codec)
    close("the best round is returned", ((W - L1 @ L2 - Q) ** 2).sum(), torch.tensor(min(errors)), 1e-5)
    must(min(errors) <= errors[0] and all(a > b for a, b in zip(errors[:-2], errors[1:-1])), f"errors {errors}")
    full = lq.decompose(W, 20, codec, rounds=1)
    close("r = min(m, n) leaves nothing", full[0] @ full[1] + full[2], W, 2e-5)
    flat = lq.low_rank(W, 4, torch.full_like(W, 0.3))
    plain = lq.low_rank(W, 4)
    close("a constant F changes nothing", flat[0] @ flat[1], plain[0] @ plain[1], 1e-9)
    F = values(24, 20, name="F").square()
    row, col = F.mean(1).sqrt(), F.mean(0).sqrt()
    A, B = lq.low_rank(W, 4, F)
    S = torch.linalg.svdvals(row[:, None] * W.double() * col)
    close("the weighted error", ((row[:, None] * (W.double() - A @ B) * col) ** 2).sum(), (S[4:] ** 2).sum(), 1e-9)
    must(len(lq.options()) == 432, f"{len(lq.options())} settings")
    weights = {k: values(16, 16, name=k, dtype=torch.float32) * c for k, c in (("a", 1.0), ("b", 3.0), ("c", 0.3))}
    choices = [NF(b, 16, Unsigned(4, 16)) for b in (2, 3, 4, 8)]
    got = lq.allot(weights, 2, 4.0, choices)
    damage = {k: [lq.decompose(v, 2, c, None, 1)[3][-1] for c in choices] for k, v in weights.items()}
    price = [c.bits(16, 16) for c in choices]
    fits = [p for p in product(range(4), repeat=3) if sum(price[i] for i in p) / 3 <= 4.0]
    best = min(fits, key=lambda p: sum(damage[k][i] for k, i in zip("abc", p)))
    must([choices.index(got[k]) for k in "abc"] == list(best), f"found {got}, the best of all {len(fits)} is {best}")
    return f"{len(errors)} rounds; 432 settings; the programme of 3 x 4"
