"""TeRA: our reading in closed form, one contraction (the authors' code was not to be had)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...methods.structure.tera import TeRA

METHODS = (TeRA(r=3), TeRA(r=2))
METHOD = METHODS[0]


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    F = [p[f"F{k}"] @ torch.diag(p[f"d{k}"]) for k in (1, 2, 3, 4)]
    D = torch.einsum("abcd,ia,jb,kc,ld->ijkl", p["G"], *F).reshape(W.shape)
    y = x @ (W + D).mT
    return y if b is None else y + b
