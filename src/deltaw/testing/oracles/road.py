"""RoAd: pair by pair, and HF PEFT, in all three variants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...methods.structure.road import RoAd

METHODS = tuple(RoAd(variant=v, group_size=8) for v in ("road_1", "road_2", "road_4"))  # type: ignore[arg-type]


def closed(method: Any, W: Tensor, b: Tensor | None, p: dict[str, Tensor], x: Tensor) -> Tensor:
    """Entry i of z = W x + b becomes c1[i] z[i] - c2[i] z[j] (i in the first half) or c1[i] z[i] + c2[i] z[j]."""
    z = x @ W.mT
    z = z if b is None else z + b
    g, out = method.group_size, []
    for i in range(z.shape[-1]):
        group, inside = divmod(i, g)
        first = inside < g // 2
        j = i + g // 2 if first else i - g // 2
        s = t = {"road_1": group * (g // 2) + inside % (g // 2), "road_2": i, "road_4": 2 * group * g + inside}[method.variant]
        if method.variant == "road_4":
            t = s + g
        c1 = p["alpha"][s] * torch.cos(p["theta"][s])
        c2 = p["alpha"][t] * torch.sin(p["theta"][t])
        out.append(c1 * z[..., i] + (-c2 if first else c2) * z[..., j])
    return torch.stack(out, -1)


def peft(method: Any) -> tuple[Any, Callable[[Any, dict[str, Tensor]], Any]]:
    from peft import RoadConfig

    def put(layer: Any, p: dict[str, Tensor]) -> dict[str, Callable[[], Tensor]]:
        theirs = {"theta": layer.road_theta["default"], "alpha": layer.road_alpha["default"]}
        with torch.no_grad():
            for name, tensor in theirs.items():
                tensor.copy_(p[name])
        return {name: lambda t=tensor: t.grad for name, tensor in theirs.items()}  # type: ignore[misc]

    return RoadConfig(variant=method.variant, group_size=method.group_size, target_modules=["lin"]), put
