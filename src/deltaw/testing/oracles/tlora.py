"""TLoRA: every entry of T and of the residual as the trace of a product of matrices (PEFT does not have it)."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor

from ...methods.structure.tlora import TLoRA

METHODS = (TLoRA(R=2, R_res=2, D=2), TLoRA(R=3, R_res=2), TLoRA(R=2, R_res=1, ring="paper"))


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    A, B, C = ([p[f"{w}{d}"] for d in range(1, method.D + 1)] for w in "ABC")

    def products(cores: list[Tensor]) -> list[Tensor]:
        return [torch.linalg.multi_dot(list(one)) for one in product(*(c.unbind(0) for c in cores))]

    T = [[torch.linalg.multi_dot([c[i, j] for c, i, j in zip(A, row, column)]).trace() for column in indices(A)] for row in indices(A)]
    D = [[(left @ right).trace() for right in products(C)] for left in products(B)]
    stack = lambda rows: torch.stack([torch.stack(row) for row in rows])  # noqa: E731
    y = x @ (W @ stack(T) + stack(D)).mT
    return y if b is None else y + b


def indices(cores: list[Tensor]) -> list[tuple[int, ...]]:
    return list(product(*(range(c.shape[0]) for c in cores)))
