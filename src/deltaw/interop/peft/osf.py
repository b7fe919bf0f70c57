"""PEFT's OSF."""

from __future__ import annotations

from typing import Any

from ...errors import StateMismatch
from ...plan import Assignment
from ...spec import Method, Start
from .dialect import LINEAR, Dialect, P, dialect, new


@dialect
class Osf(Dialect):
    """The frozen block is not in the file: it follows from the base."""

    type = "OSF"
    methods = ("osf",)
    kinds = LINEAR
    names = {k: f"osf_svd_params.{k}_low" for k in "USV"}
    handled = frozenset({"effective_rank"})
    neutral = {"rank_pattern": (None, {}), "target_svd_config": (None,)}
    ignored = frozenset({"init_weights"})

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        return {"effective_rank": method.top}

    def method(self, f: dict[str, Any]) -> Method:
        top = f.get("effective_rank")
        if isinstance(top, float):
            raise StateMismatch(f"adapter_config.json: effective_rank = {top}: a share of every module's rank is not supported")
        return new("osf", top=top)

    def pack(self, a: Assignment, p: P) -> P:
        return {theirs: p[k] for k, theirs in self.names.items()}

    def unpack(self, a: Assignment, t: P, own: P) -> P:
        U, S, V = Start(a.site.name, a.site.kind, a.site.leaf().op, 0, a.method).svd(min(a.site.shape))
        k = own["Sh"].numel()
        head = {"Uh": U[:, :k], "Sh": S[:k], "Vh": V[:k]}
        return {k: t[theirs] for k, theirs in self.names.items()} | {k: v.to(own[k].dtype) for k, v in head.items()}
