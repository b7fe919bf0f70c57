"""LoRA-Squeeze in training by hand: the dense update, cut by a singular value decomposition, and an Adam that starts anew."""

from __future__ import annotations

import torch

from ....methods.rules.lora_squeeze import LoRASqueeze
from ....methods.structure.lora import LoRA
from ....plan import Plan
from ...laws.base import close, must
from ..terms import SIZES, Terms

LADDER, ALPHA, STEPS = (4, 3, 1), 6.0, 15


def check() -> str:
    run = Terms(Plan(LoRA(LADDER[0], ALPHA), rules=LoRASqueeze(LADDER)), STEPS, ALPHA / LADDER[0], ("B", None, "A"))
    s, sizes = ALPHA / LADDER[0], []
    for t in range(STEPS):
        run.step(t)
        k = LADDER[min(int((t + 1) / STEPS * len(LADDER)), len(LADDER) - 1)]
        for site in SIZES if k < len(run.all()) / 2 else ():
            U, S, V = torch.linalg.svd(run.change(site).detach(), full_matrices=False)
            run.terms[site] = run.fresh(site)
            B, _, A = run.stack(site)
            must(len(A) == k, f"step {t}: rank {len(A)} instead of {k}")
            close(f"step {t}: {site}, the best of rank {k}", s * B @ A, U[:, :k] * S[:k] @ V[:k], 1e-9)
            close(f"step {t}: {site}, balanced", B.mT @ B, torch.diag(S[:k] / s), 1e-9)
            close(f"step {t}: {site}, balanced", A @ A.mT, torch.diag(S[:k] / s), 1e-9)
        run.agree(f"step {t}")
        sizes.append(len(run.all()) // 2)
    must(sizes == [4] * 4 + [3] * 5 + [1] * 6, f"ranks by step: {sizes}")
    return f"{STEPS} steps, ranks {sizes}"
