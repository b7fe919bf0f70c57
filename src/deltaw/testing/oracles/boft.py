"""BOFT: permutations as matrices in plain torch, and HF PEFT, its CUDA kernel replaced by the same thing in torch."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ...methods.structure.boft import BOFT

METHODS = (BOFT(block_size=4), BOFT(block_size=4, factors=2), BOFT(block_size=2, factors=4))


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    n, size = x.shape[-1], method.block_size
    eye, R = torch.eye(size, dtype=W.dtype), torch.eye(n, dtype=W.dtype)
    for level, blocks in enumerate(p["D"]):
        turns = [(eye - (D - D.mT) / 2) @ torch.linalg.inv(eye + (D - D.mT) / 2) for D in blocks]
        order, half = list(range(n)), size // 2
        for start in range(0, n if level else 0, size * 2**level):  # even half blocks of a group, then the odd ones
            inside = [list(range(k, k + half)) for k in range(start, start + size * 2**level, half)]
            order[start : start + size * 2**level] = sum(inside[0::2] + inside[1::2], [])
        P = torch.eye(n, dtype=W.dtype)[order]
        R = P @ torch.block_diag(*turns) @ P.mT @ R
    y = (x @ R @ W.mT) * p["s"]
    return y if b is None else y + b


def kernel() -> Any:
    """What PEFT compiles for CUDA: (N, D, H, H) -> (N, D H, D H) with the blocks on the diagonal, and its gradient."""

    def forward(t: Tensor) -> list[Tensor]:
        return [torch.stack([torch.block_diag(*blocks) for blocks in t])]

    def backward(g: Tensor, t: Tensor) -> list[Tensor]:
        D, H = t.shape[1], t.shape[2]
        return [torch.stack([g[:, k * H : (k + 1) * H, k * H : (k + 1) * H] for k in range(D)], 1)]

    return SimpleNamespace(forward=forward, backward=backward)


def peft(method: Any) -> tuple[Any, Callable[[Any, dict[str, Tensor]], Any]]:
    from peft import BOFTConfig
    from peft.tuners.boft import layer as theirs

    theirs._FBD_CUDA = kernel()  # without one PEFT tries to compile it, and then cuts the factors to one

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        D, s = layer.boft_R["default"], layer.boft_s["default"]
        with torch.no_grad():
            D.copy_(p["D"])
            s.copy_(p["s"][:, None])
        return {"D": lambda: D.grad, "s": lambda: s.grad[:, 0]}

    config = BOFTConfig(
        boft_block_size=method.block_size, boft_n_butterfly_factor=method.factors, target_modules=["lin"]
    )
    return config, put
