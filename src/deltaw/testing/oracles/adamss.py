"""AdaMSS: the closed form, and HF PEFT given our groups (to find its own it needs scikit-learn)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import need
from ...methods.structure.adamss import AdaMSS

METHODS = (AdaMSS(R=8, K=2, rk=2), AdaMSS(R=6, K=4, rk=1))
METHOD = METHODS[0]


def closed(method: AdaMSS, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    full = W if b is None else torch.cat([W, b[:, None]], 1)
    V = torch.linalg.svd(full, full_matrices=False).Vh[: method.R]
    torch.testing.assert_close(p["V"].mT @ p["V"], (V.mT @ V).to(p["V"]), rtol=1e-5, atol=1e-5)
    rows = [row + p["B"][i] @ p["A"][int(p["group"][i])] @ p["V"] for i, row in enumerate(full)]
    one = x if b is None else torch.cat([x, torch.ones(*x.shape[:-1], 1, dtype=x.dtype)], -1)
    return one @ torch.stack(rows).mT


def peft(method: AdaMSS) -> tuple[Any, Callable[..., dict[str, Callable[[], Tensor]]]]:
    from peft import AdamssConfig

    need("sklearn", extra="study")

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        rows = [(p["group"] == k).nonzero()[:, 0] for k in range(method.K)]
        A = nn.ParameterList([nn.Parameter(a.clone()) for a in p["A"]])
        B = nn.ParameterList([nn.Parameter(p["B"][i].clone()) for i in rows])
        layer.adamss_A["default"], layer.adamss_B["default"], layer.adamss_newB["default"] = A, B, p["V"]
        layer.scatter_index["default"], layer.dtype = torch.cat(rows), torch.float64

        def of_B() -> Tensor:
            return torch.cat([t.grad for t in B])[torch.cat(rows).argsort()]  # type: ignore[misc]

        return {"A": lambda: torch.stack([t.grad for t in A]), "B": of_B}  # type: ignore[misc]

    fields = {"num_subspaces": method.K, "subspace_rank": method.rk}
    return AdamssConfig(r=method.R, target_modules=["lin"], **fields), put
