"""Sensitivity-LoRA's three numbers by hand, and the budget."""

from __future__ import annotations

import torch

from ....methods.rank.sensitivity_lora import SensitivityLoRA
from ....ops import as_op
from ....spec import METHODS, Start
from ...laws.base import close, must
from ...tiny import values


def check() -> str:
    policy, lora = SensitivityLoRA(top=0.3, tau=0.8), METHODS["lora"](r=4)  # type: ignore[call-arg]
    W, X = values(7, 10, name="W"), values(40, 10, name="X")
    H = 2 * X.mT @ X / 40
    h = [float(H[j, j]) for j in range(10)]
    one = sum(h[j] * float((W[:, j] ** 2).sum()) for j in range(10))
    two = sum(sorted(h)[-3:]) / sum(h)
    eigen = sorted((float(v) for v in torch.linalg.eigvalsh(H)), reverse=True)
    three = next(k for k in range(1, 11) if sum(eigen[:k]) >= 0.8 * sum(eigen))
    got = policy.of(W, H)
    close("S1, S2, S3", torch.tensor(got, dtype=W.dtype), torch.tensor((one, two, three), dtype=W.dtype), 1e-10)
    starts = [Start(k, "linear", as_op(c * W), 0, lora) for k, c in (("a", 1.0), ("b", 2.0), ("c", 0.1))]
    ranks = policy.ranks(starts, {k: {"inputs": H / 2} for k in "abc"})
    must(sum(ranks.values()) == 12 and ranks["b"] > ranks["a"] >= ranks["c"] >= 1, f"found {ranks}")
    return f"three statistics; ranks {ranks} of a budget of 12"
