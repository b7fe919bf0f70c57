"""PEFT's FROD."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...files.foreign import Inexpressible
from ...methods.joint import in_basis, kind_of, shared_basis
from ...plan import Assignment
from ...spec import Method
from .dialect import LINEAR, Dialect, P, bare, dialect, dialect_of, new

WORDS = {"V": "base_model.frod_V.", "I": "base_model.frod_s_indices."}


@dialect
class Frod(Dialect):
    """V and the places of S are kept for a category; U is not, PEFT computes it from W and a V of its own."""

    type = "FROD"
    methods = ("frod",)
    kinds = LINEAR | {"conv1d_hf"}
    names = {"Lambda": "frod_lambda_l", "s": "frod_lambda_s_values"}
    dropout = "frod_dropout"
    handled = frozenset({"sparse_rate", "regularization_alpha", "projection_prng_key", "save_projection"})
    neutral = {"bias": ("none",), "save_projection": (True,)}
    ignored = frozenset({"fan_in_fan_out", "init_weights", "progressbar", "runtime_offload_base_weight"})

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        head = {"sparse_rate": method.rate, "regularization_alpha": method.ridge, "projection_prng_key": method.seed}
        return head | {"save_projection": True}

    def method(self, f: dict[str, Any]) -> Method:
        rate, ridge = float(f.get("sparse_rate", 0.01)), float(f.get("regularization_alpha", 1e-3))
        return new("frod", rate=rate, ridge=ridge, seed=f.get("projection_prng_key", 0))

    def pack(self, a: Assignment, p: P) -> P:
        return {theirs: p[k] for k, theirs in self.names.items()}

    def unpack(self, a: Assignment, t: P, own: P) -> P:
        return {k: t[theirs] for k, theirs in self.names.items()}

    def among(self, adapted: Any) -> dict[str, list[Assignment]]:
        """The sites of every category."""
        out: dict[str, list[Assignment]] = {}
        for a in adapted.assignments:
            if a.site.kind in self.kinds and dialect_of(a.method) is self:
                out.setdefault(kind_of(a.site.name), []).append(a)
        for kind, sites in out.items():
            if len({a.site.shape[1] for a in sites}) > 1:
                raise Inexpressible(f"PEFT's FROD has one basis for all modules called {kind}, which differ in width here")
        return out

    def pack_shared(self, adapted: Any, state: P) -> P:
        out = {}
        for kind, sites in self.among(adapted).items():
            n, method = sites[0].site.shape[1], bare(sites[0].method)[0]
            V, i = state[f"{kind}-{n}.V"], state[f"{kind}-{n}.I"]
            if bool(V.any()):  # blanks are packed to learn the names
                again = shared_basis([a.site.leaf().op for a in sites], method.ridge).to(V)  # type: ignore[attr-defined]
                if not torch.allclose(again, V, rtol=1e-3, atol=1e-4 * float(V.abs().max())):
                    raise Inexpressible(f"PEFT would pair this basis of {kind} with one that it computes from the base itself")
            out |= {f"{WORDS['V']}{kind}": V, f"{WORDS['I']}{kind}": torch.stack([i // n, i % n])}
            out[f"base_model.frod_s_size.{kind}"] = torch.tensor([n, n])
        return out

    def unpack_shared(self, adapted: Any, t: P, state: P) -> P:
        out: dict[str, Tensor] = {}
        for kind, sites in self.among(adapted).items():
            n = sites[0].site.shape[1]
            V, (row, column) = t[f"{WORDS['V']}{kind}"], t[f"{WORDS['I']}{kind}"].long()
            out |= {f"{kind}-{n}.V": V, f"{kind}-{n}.I": row * n + column}
            for a in sites:
                U = torch.nn.functional.normalize(in_basis(a.site.leaf().op, V), dim=0)
                out[f"{a.site.name}.U"] = U.to(state[f"{a.site.name}.U"].dtype)
        return out
