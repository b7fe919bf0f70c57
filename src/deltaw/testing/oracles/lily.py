"""Lily: the router and its bank written out, and HF PEFT on one row at a time (its mean runs over the whole batch)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...methods.route.lily import Lily

METHODS = (Lily(r=4), Lily(r=3, num_B=3, stride_A=2, scaling=0.5))
METHOD = METHODS[0]


def closed(method: Lily, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    out = []
    for row in x:
        h = row @ p["A"].mT
        share = torch.exp(h @ p["R"].mT)
        share = (share / share.sum(1, keepdim=True)).sum(0) / len(row)
        out.append(method.scaling * h @ sum(w * B for w, B in zip(share, p["B"])))
    return F.linear(x, W, b) + torch.stack(out)


def peft(method: Lily) -> tuple[Any, Callable[..., dict[str, Callable[[], Tensor]]]]:
    from peft import LilyConfig

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        A, B, R = (getattr(layer, f"lily_{k}")["default"].weight for k in ("A", "B", "router"))
        for theirs, name in ((A, "A"), (B, "B"), (R, "R")):
            theirs.data.copy_(p[name].reshape(theirs.shape))
        theirs_whole = type(layer).forward
        layer.forward = lambda x: torch.cat([theirs_whole(layer, row[None]) for row in x])
        return {"A": lambda: A.grad, "R": lambda: R.grad, "B": lambda: B.grad.reshape(p["B"].shape)}

    config = LilyConfig(
        r=method.r, stride_A=method.stride_A, num_B=method.num_B, scaling=method.scaling, target_modules=["lin"]
    )
    return config, put
