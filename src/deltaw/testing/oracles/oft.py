"""OFT and COFT: block by block in plain torch, and HF PEFT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...methods.structure.oft import OFT

METHODS = (OFT(block_size=4), OFT(block_size=8, terms=0), OFT(block_size=4, terms=6, share=True), OFT(block_size=4, eps=0.5))


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    """Each block of the input as a row times its rotation; COFT's gradient is taken as if the projection were free."""
    size, blocks = method.block_size, []
    upper = [(i, j) for i in range(size) for j in range(i + 1, size)]
    eye = torch.eye(size, dtype=W.dtype)
    for q in p["q"]:
        if method.eps is not None:
            limit = method.eps / len(p["q"]) ** 0.5
            length = float(2 * q.detach().square().sum()) ** 0.5
            if length > limit:
                q = q + (q.detach() * limit / length - q.detach())
        Q = torch.zeros_like(W[:1, :1]).expand(size, size)
        for value, (i, j) in zip(q, upper):
            unit = torch.zeros(size, size, dtype=W.dtype)
            unit[i, j], unit[j, i] = 1.0, -1.0
            Q = Q + value * unit
        if method.terms:
            powers = [eye]
            for _ in range(method.terms - 1):
                powers.append(powers[-1] @ Q)
            R = powers[0] + 2 * sum(powers[1:-1]) + powers[-1]
        else:
            R = (eye - Q) @ torch.linalg.inv(eye + Q)
        blocks.append(R)
    count = x.shape[-1] // size
    blocks = blocks * count if method.share else blocks
    turned = torch.cat([x[..., k * size : (k + 1) * size] @ blocks[k] for k in range(count)], -1)
    y = turned @ W.mT
    return y if b is None else y + b


def peft(method: Any) -> tuple[Any, Callable[[Any, dict[str, Tensor]], Any]]:
    from peft import OFTConfig

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        q = layer.oft_R["default"].weight
        with torch.no_grad():
            q.copy_(p["q"])
        return {"q": lambda: q.grad}

    config = OFTConfig(
        oft_block_size=method.block_size, use_cayley_neumann=method.terms > 0, num_cayley_neumann_terms=method.terms or 5,
        block_share=method.share, coft=method.eps is not None, eps=method.eps or 6e-5, target_modules=["lin"],
    )  # fmt: skip
    return config, put
