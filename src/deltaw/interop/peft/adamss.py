"""PEFT's ADAMSS."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import StateMismatch
from ...files.foreign import Inexpressible
from ...methods.clusters import beside
from ...plan import Assignment
from ...spec import Method
from .dialect import LINEAR, Dialect, P, dialect, new

WHY = "PEFT's ADAMSS keeps no groups: it finds them again from the base with scikit-learn"


@dialect
class Adamss(Dialect):
    """Which row is in which group is not in the file, so it is found here as PEFT finds it; that needs scikit-learn."""

    type = "ADAMSS"
    methods = ("adamss",)
    kinds = LINEAR
    handled = frozenset({"r", "num_subspaces", "subspace_rank"})
    neutral = {"use_dynamic_rank": (False,), "random_seed": (0,)}
    ignored = frozenset(
        {"init_weights", "use_asa", "asa_target_subspaces", "init_warmup", "final_warmup", "mask_interval", "svd_threshold",
         "asa_importance_beta", "asa_uncertainty_beta", "asa_schedule_exponent"}
    )  # fmt: skip

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        return {"r": method.R, "num_subspaces": method.K, "subspace_rank": method.rk}

    def method(self, f: dict[str, Any]) -> Method:
        return new("adamss", R=f.get("r", 100), K=f.get("num_subspaces", 5), rk=f.get("subspace_rank", 1))

    def pack(self, a: Assignment, p: P) -> P:
        found = theirs(a)
        if found is None:
            raise Inexpressible(f"{a.site.name}: {WHY}, which is not installed")
        if bool(p["V"].any()) and not torch.equal(found, p["group"].cpu()):  # blanks are packed to learn the names
            raise Inexpressible(f"{a.site.name}: {WHY}, and these are others")
        out = {"adamss_newB": p["V"]}
        for k in range(len(p["A"])):
            A, B = p["A"][k], p["B"][found == k]
            if len(B) < len(A):  # a group of few rows has no more ranks in PEFT
                A, B = B @ A, torch.eye(len(B)).to(B)
            out |= {f"adamss_A.{k}": A, f"adamss_B.{k}": B}
        return out

    def unpack(self, a: Assignment, t: P, own: P) -> P:
        g = theirs(a)
        assert g is not None  # the names have been packed before
        A, B = torch.zeros(own["A"].shape), torch.zeros(own["B"].shape)
        for k in range(len(A)):
            part, rows = t[f"adamss_A.{k}"], t[f"adamss_B.{k}"]
            A[k, : len(part)] = part
            B[g == k] = torch.nn.functional.pad(rows.float(), (0, B.shape[1] - rows.shape[1]))
        return {"V": t["adamss_newB"], "group": g, "A": A, "B": B}

    def prepare(self, config: dict[str, Any], tensors: P, plan: Any, model: Any) -> Any:
        if any(theirs(a) is None for a in plan.resolve(model)[:1]):
            raise StateMismatch(f"adapter_config.json: {WHY}; pip install scikit-learn")
        return plan


def theirs(a: Assignment) -> Tensor | None:
    """The group of every row; None without scikit-learn."""
    try:
        from sklearn.cluster import KMeans  # type: ignore[import-not-found]
    except ModuleNotFoundError:
        return None
    base, method = a.site.leaf(), a.method
    W = beside(base.op.dense().detach().float().cpu(), None if base.bias is None else base.bias.cpu())
    with torch.random.fork_rng(devices=[]):  # torch draws the start of this SVD from its global generator
        torch.manual_seed(0)
        U = torch.svd_lowrank(W, q=method.R, niter=2)[0][:, : method.R]  # type: ignore[attr-defined]
    settings = {"init": "random", "n_init": 1, "max_iter": 10, "random_state": 123456789}
    return torch.from_numpy(KMeans(method.K, **settings).fit_predict(U.numpy())).long()  # type: ignore[attr-defined]
