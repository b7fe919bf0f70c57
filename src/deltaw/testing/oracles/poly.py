"""Poly: the closed form of task 0 in evaluation, and HF PEFT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...methods.route.poly import Poly

METHODS = (Poly(r=2, skills=3), Poly(r=3, tasks=2, skills=2, splits=4))


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    """Split by split and pair by pair of skills: skill i reads, skill j writes."""
    P, K = method.splits, method.skills
    z = 1 / (1 + torch.exp(-p["Z"][0].reshape(P, K)))
    w = z / z.sum(1, keepdim=True)
    read = sum(w[s, i] * part @ p["A"][s, i].mT for s, part in enumerate(x.chunk(P, -1)) for i in range(K))
    wrote = torch.cat([sum(w[s, j] * read @ p["B"][s, j].mT for j in range(K)) for s in range(P)], -1)
    y = x @ W.mT + wrote / method.r
    return y if b is None else y + b


def peft(method: Poly) -> tuple[Any, Callable[..., dict[str, Callable[[], Tensor]]]]:
    from peft import PolyConfig

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        A, B, Z = layer.poly_lora_A["default"], layer.poly_lora_B["default"], layer.poly_router["default"].module_logits
        for theirs, t in ((A, p["A"].mT), (B, p["B"].mT), (Z, p["Z"])):
            theirs.data.copy_(t)
        task = {"task_ids": torch.zeros(3, dtype=torch.int64)}  # of the three rows that are compared
        layer.register_forward_pre_hook(lambda _, args, kw: (args, kw | task), with_kwargs=True)
        return {"A": lambda: A.grad.mT, "B": lambda: B.grad.mT, "Z": lambda: Z.grad}

    sizes = {"r": method.r, "n_tasks": method.tasks, "n_skills": method.skills, "n_splits": method.splits}
    return PolyConfig(**sizes, target_modules=["lin"]), put
