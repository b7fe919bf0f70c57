"""Trainable tokens: the closed form, rows of the table (columns of the map) exchanged one by one.

HF PEFT has the method for embeddings and their tied heads only; that comparison is in the tests of files.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...methods.structure.trainable_tokens import TrainableTokens

IN_PEFT = True
METHOD = TrainableTokens(ids=(9, 1, 3))


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    table = W.clone()
    for row, column in enumerate(sorted(method.ids)):
        table[:, column] = p["v"][row] - p["v0"][row] + W[:, column]
    y = x @ table.mT
    return y if b is None else y + b


def peft_config(method: TrainableTokens) -> Any:
    from peft import TrainableTokensConfig

    return TrainableTokensConfig(target_modules=["lin"], token_indices=list(method.ids))
