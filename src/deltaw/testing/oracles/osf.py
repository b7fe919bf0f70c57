"""OSF: the closed form, and HF PEFT with its gradient hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...methods.structure.osf import OSF

METHODS = (OSF(), OSF(top=5))
METHOD = METHODS[0]


def closed(method: OSF, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    t = W.shape[1] // 2 if method.top is None else method.top
    A, S, B = torch.linalg.svd(W, full_matrices=False)
    kept = A[:, :t] @ torch.diag(S[:t]) @ B[:t]
    PU, PV = torch.eye(len(W), dtype=W.dtype) - A[:, :t] @ A[:, :t].mT, torch.eye(W.shape[1], dtype=W.dtype) - B[:t].mT @ B[:t]
    U, V = p["U"], p["V"]
    U = U.detach() + PU @ (U - U.detach())  # the value of U, a gradient through the projection
    V = V.detach() + (V - V.detach()) @ PV
    y = x @ (kept + U @ torch.diag(p["S"]) @ V).mT
    return y if b is None else y + b


def peft(method: OSF) -> tuple[Any, Callable[..., dict[str, Callable[[], Tensor]]]]:
    from peft import OSFConfig

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        W, own = layer.get_base_layer().weight.detach(), layer.osf_svd_params["default"]
        U, S, V = torch.linalg.svd(W, full_matrices=False)  # PEFT passes through float32
        t = p["Uh"].shape[1]
        exact = {"U_low_init": U[:, t:], "S_low_init": S[t:], "V_low_init": V[t:], "U_high": U[:, :t], "V_high": V[:t]}
        for word, tensor in exact.items():
            kept = getattr(layer, f"_osf_{word}")
            if "default" in kept:
                kept["default"] = tensor
        for name in "USV":
            own[f"{name}_low"].data.copy_(p[name])
        return {name: lambda t=own[f"{name}_low"]: t.grad for name in "USV"}  # type: ignore[misc]

    return OSFConfig(effective_rank=method.top, target_modules=["lin"]), put
