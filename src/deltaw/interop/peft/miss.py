"""PEFT's MISS: our `miss`, and with init_weights="bat" our `bone_bat`."""

from __future__ import annotations

from typing import Any

from ...errors import StateMismatch
from ...files.foreign import Inexpressible
from ...spec import Method
from .dialect import LINEAR, Dialect, P, dialect, new


@dialect
class Miss(Dialect):
    type = "MISS"
    methods = ("miss", "bone_bat")
    kinds = LINEAR
    names = {"D": "miss_block"}
    dropout = "miss_dropout"
    handled = frozenset({"r", "mini_r", "init_weights"})
    neutral = {"bias": ("none",)}

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        if method.key == "bone_bat":
            return {"r": method.r, "init_weights": "bat", "mini_r": 1}
        return {"r": method.r, "init_weights": "mini" if method.mini_r else True, "mini_r": method.mini_r or 1}

    def method(self, f: dict[str, Any]) -> Method:
        kind, r = f.get("init_weights", True), f.get("r", 64)
        if kind == "bat":
            if f.get("miss_dropout"):
                raise StateMismatch(
                    "adapter_config.json: miss_dropout acts on nothing with init_weights = 'bat'; set it to 0"
                )
            return new("bone_bat", r=r)
        return new("miss", r=r, mini_r=f.get("mini_r", 1) if kind == "mini" else 0)

    def check(self, adapted: Any, config: dict[str, Any]) -> None:
        if config["init_weights"] == "bat" and config["miss_dropout"]:
            raise Inexpressible("PEFT's MISS has no dropout with init_weights = 'bat'")
