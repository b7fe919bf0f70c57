"""PEFT's HRA, ROAD, SHIRA and IA3."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ...plan import Assignment
from ...spec import Method
from .dialect import DENSE, LINEAR, Dialect, Inexpressible, P, dialect, new


@dialect
class Hra(Dialect):
    type = "HRA"
    methods = ("hra",)
    kinds = LINEAR | {"conv"}
    names = {"U": "hra_u"}
    handled = frozenset({"r"})
    neutral = {"bias": ("none",), "apply_GS": (False,)}
    ignored = frozenset({"init_weights"})

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        return {"r": method.r}

    def method(self, f: dict[str, Any]) -> Method:
        return new("hra", r=f.get("r", 8))

    def refusal(self, a: Assignment) -> str | None:
        c: Any = a.site.module
        if a.site.kind == "conv" and not (isinstance(c, nn.Conv2d) and c.groups == 1 and len(set(c.kernel_size)) == 1):
            return "PEFT's HRA adapts nn.Conv2d with a square kernel and one group only"
        return super().refusal(a)


@dialect
class Road(Dialect):
    type = "ROAD"
    methods = ("road",)
    kinds = LINEAR
    names = {"theta": "road_theta", "alpha": "road_alpha"}
    handled = frozenset({"variant", "group_size"})
    ignored = frozenset({"init_weights"})

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        return {"variant": method.variant, "group_size": method.group_size}

    def method(self, f: dict[str, Any]) -> Method:
        return new("road", variant=f.get("variant", "road_1"), group_size=f.get("group_size", 64))


@dialect
class Shira(Dialect):
    """PEFT stores the positions as (row, column); how they were chosen does not matter after that."""

    type = "SHIRA"
    methods = ("shira",)
    kinds = LINEAR
    handled = frozenset({"r"})
    ignored = frozenset({"init_weights", "fan_in_fan_out", "mask_type", "random_seed"})

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        return {"r": method.r, "mask_type": "random"}

    def method(self, f: dict[str, Any]) -> Method:
        return new("shira", r=f.get("r", 32))

    def pack(self, a: Assignment, p: P) -> P:
        n = a.site.shape[1]
        return {"shira_weight": p["v"], "shira_indices": torch.stack([p["I"] // n, p["I"] % n]).to(torch.int32)}

    def unpack(self, a: Assignment, t: P, own: P) -> P:
        row, column = t["shira_indices"].to(torch.int64)
        return {"v": t["shira_weight"], "I": row * a.site.shape[1] + column}


@dialect
class Ia3(Dialect):
    """The side is a list of names in PEFT, `feedforward_modules`; format.py writes and reads it like a pattern."""

    type = "IA3"
    methods = ("ia3",)
    kinds = DENSE | {"conv"}
    handled = frozenset({"feedforward_modules"})
    ignored = frozenset({"init_ia3_weights", "fan_in_fan_out"})

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        return {"side": method.side}

    def method(self, f: dict[str, Any]) -> Method:
        return new("ia3", side=f.get("side", "out"))

    def refusal(self, a: Assignment) -> str | None:
        c: Any = a.site.module
        if a.site.kind == "conv" and (c.groups > 1 or not isinstance(c, (nn.Conv2d, nn.Conv3d))):
            return "PEFT's IA3 adapts nn.Conv2d and nn.Conv3d with one group only"
        return super().refusal(a)

    def pack(self, a: Assignment, p: P) -> P:
        side, l = a.method.side, p["l"]  # type: ignore[attr-defined]
        if a.site.kind != "conv":
            return {"ia3_l": l.reshape(-1, 1) if side == "out" else l.reshape(1, -1)}
        kernel = a.site.module.weight.shape[1:]  # type: ignore[union-attr,index]
        ones = (1,) * (len(kernel) - 1)
        if side == "out":
            return {"ia3_l": l.reshape(1, -1, *ones)}
        each = l.reshape(kernel[0], -1)
        if not torch.equal(each, each[:, :1].expand_as(each)):
            raise Inexpressible(
                f"{a.site.name}: PEFT scales the channels of a convolution, here every patch entry has its own"
            )
        return {"ia3_l": each[:, 0].reshape(1, -1, *ones)}

    def unpack(self, a: Assignment, t: P, own: P) -> P:
        l = t["ia3_l"].flatten()
        return {"l": l.repeat_interleave(own["l"].numel() // l.numel())}
