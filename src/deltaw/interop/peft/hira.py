"""PEFT's HIRA."""

from __future__ import annotations

from typing import Any

from ...plan import Assignment
from ...spec import Method
from .dialect import DENSE, Dialect, P, dialect, kernel_of, new


@dialect
class Hira(Dialect):
    """PEFT 0.21.2 has a rank_pattern here but builds every site with `r`, so it is neither written nor followed."""

    type = "HIRA"
    methods = ("hira",)
    kinds = DENSE | {"conv", "embedding"}
    dropout = "hira_dropout"
    handled = frozenset({"r"})
    ignored = frozenset({"fan_in_fan_out", "init_weights"})

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        return {"r": method.r}

    def method(self, f: dict[str, Any]) -> Method:
        return new("hira", r=f.get("r", 32))

    def refusal(self, a: Assignment) -> str | None:
        c: Any = a.site.module
        if a.site.kind == "conv" and c.groups > 1:
            return "PEFT's HiRA has no grouped convolution"
        return super().refusal(a)

    def pack(self, a: Assignment, p: P) -> P:
        if a.site.kind == "embedding":
            return {"hira_embedding_A": p["A"], "hira_embedding_B": p["B"]}
        if a.site.kind == "conv":
            kernel = kernel_of(a)[1:]
            return {
                "hira_A": p["A"].reshape(-1, *kernel),
                "hira_B": p["B"].reshape(*p["B"].shape, *(1,) * (len(kernel) - 1)),
            }
        return {"hira_A": p["A"], "hira_B": p["B"]}

    def unpack(self, a: Assignment, t: P, own: P) -> P:
        word = "hira_embedding_{}" if a.site.kind == "embedding" else "hira_{}"
        return {k: t[word.format(k)].reshape(v.shape) for k, v in own.items()}
