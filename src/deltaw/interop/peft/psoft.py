"""PEFT's PSOFT."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...plan import Assignment
from ...spec import Method, Start
from .dialect import LINEAR, Dialect, P, dialect, new


@dialect
class Psoft(Dialect):
    """PEFT keeps no frozen factor: it takes the SVD of W again, with singular vectors of its own signs. q is for those."""

    type = "PSOFT"
    methods = ("psoft",)
    kinds = LINEAR
    names = {"q": "psoft_R.weight", "beta": "psoft_R.vector_b", "alpha": "psoft_R.vector_a"}
    dropout = "psoft_dropout"
    handled = frozenset({"r"})
    neutral = {
        "ab_svd_init": ("psoft_init",), "psoft_svd": ("full",), "psoft_orth": (True,), "psoft_mag_a": (True,),
        "psoft_mag_b": (True,), "use_cayley_neumann": (False,),
    }  # fmt: skip
    ignored = frozenset(
        {"psoft_alpha", "init_weights", "fan_in_fan_out", "psoft_svd_lowrank_niter", "random_seed", "num_cayley_neumann_terms",
         "cayley_neumann_eps"}
    )  # fmt: skip

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        return {"r": method.r, "psoft_alpha": method.r}

    def method(self, f: dict[str, Any]) -> Method:
        return new("psoft", r=f.get("r", 32))

    def pack(self, a: Assignment, p: P) -> P:
        q = p["q"] if p["q"].device.type == "meta" else p["q"] * _turned(a, p["B"])
        return {self.names["q"]: q} | {self.names[k]: p[k] for k in ("beta", "alpha")}

    def unpack(self, a: Assignment, t: P, own: P) -> P:
        start = Start(a.site.name, a.site.kind, a.site.leaf().op, 0, a.method)
        U, S, V = start.svd(a.method.r)  # type: ignore[attr-defined]
        B = (U * S).to(own["B"].dtype)
        out = {k: t[self.names[k]] for k in self.names} | {"A": V.to(own["A"].dtype), "B": B}
        return out | {"q": out["q"] * _turned(a, B)}


def _turned(a: Assignment, B: Tensor) -> Tensor:
    """The sign of every entry of q (by rows of the upper triangle) between our singular vectors and torch's."""
    if not bool(B.any()):  # blanks are packed to learn the names
        return B.new_ones(())
    W = a.site.leaf().op.dense().detach().float()
    U = torch.linalg.svd(W, full_matrices=False).U[:, : B.shape[1]]
    s = torch.where((U * B.to(U)).sum(0) < 0, -1.0, 1.0)
    i, j = torch.triu_indices(len(s), len(s), 1)
    return (s[i] * s[j]).to(B)
