"""PEFT's IA3."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ...files.foreign import Inexpressible
from ...plan import Assignment
from ...spec import Method
from .dialect import DENSE, Dialect, P, dialect, kernel_of, new


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
        side, scale = a.method.side, p["l"]  # type: ignore[attr-defined]
        if a.site.kind != "conv":
            return {"ia3_l": scale.reshape(-1, 1) if side == "out" else scale.reshape(1, -1)}
        kernel = kernel_of(a)[1:]
        ones = (1,) * (len(kernel) - 1)
        if side == "out":
            return {"ia3_l": scale.reshape(1, -1, *ones)}
        each = scale.reshape(kernel[0], -1)
        if not torch.equal(each, each[:, :1].expand_as(each)):
            raise Inexpressible(
                f"{a.site.name}: PEFT scales the channels of a convolution, here every patch entry has its own"
            )
        return {"ia3_l": each[:, 0].reshape(1, -1, *ones)}

    def unpack(self, a: Assignment, t: P, own: P) -> P:
        scale = t["ia3_l"].flatten()
        return {"l": scale.repeat_interleave(own["l"].numel() // scale.numel())}
