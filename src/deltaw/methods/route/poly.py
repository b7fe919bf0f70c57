"""Poly: every task mixes the skills of a shared inventory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import SpecError
from ...ops import Affine, Map, chain
from ...spec import Declared, Method, Param, Signal, Tensors, kaiming, method, uniform
from ..factors import divides, positive
from ..routing import ByTask, shares


@method(paper="arXiv:2202.13914", claims=("tasks share what they have in common; a new task needs a new row of Z only",))
class Poly(Method):
    """y = W x + b + B_t A_t x / r for a row of task t; A_t = [A_t1 .. A_tP] along the input, B_t likewise along the output,
    A_tp = sum_k w_pk A_pk, B_tp = sum_k w_pk B_pk, w_p = z_p / (sum z_p + 1e-12), z = sigmoid(Z_t).
    In training z = sigmoid(Z_t + log u - log(1 - u)), u ~ U(0, 1) drawn anew for every row. A (P, K, r, n/P),
    B (P, K, m/P, r), Z (tasks, P K) trained. Start: A ~ U(±1/sqrt(n/P)), B = 0, Z ~ U(±0.001): the base's first output.
    Count: K r (m + n) + tasks P K. `deltaw.tasks` says which row is of which task, else it is task 0; under
    `deltaw.tasks(model, 2)` all is task 2, which merges, and is a LoRA of rank r. Source: Ponti et al. 2022;
    splits > 1: Caccia et al. 2022 (MHR), tuned for a new task by Z alone. Start and defaults as in HF PEFT.
    Trap: A and B are mixed apart, so skills cross: K² products, and not sum_k w_k B_k A_k.

    >>> from deltaw.methods import Poly
    >>> {k: p.shape for k, p in Poly(r=4, tasks=3).params(10, 6).items() if k != "k"}
    {'A': (1, 4, 4, 6), 'B': (1, 4, 10, 4), 'Z': (3, 4)}
    """

    r: int = 8
    tasks: int = 1
    skills: int = 4
    splits: int = 1

    def params(self, m: int, n: int) -> Declared:
        r, K, P = self.r, self.skills, self.splits
        positive(r=r, tasks=self.tasks, skills=K, splits=P)
        divides("splits", P, m=m, n=n)
        return {"A": Param((P, K, r, n // P), kaiming), "B": Param((P, K, m // P, r)),
                "Z": Param((self.tasks, P * K), uniform(1e-3)), "k": Signal("tasks")}  # fmt: skip

    def declare(self, site: Any) -> Declared:
        if site.kind not in ("linear", "opaque", "conv1d_hf"):  # what sees rows of the batch
            raise SpecError(f"{site.name}: poly is for linear layers; this is a {site.kind}")
        return self.params(*site.shape)

    def mixed(self, p: Tensors, Z: Tensor) -> tuple[Tensor, Tensor]:
        """(B (rows, m, r), A (rows, r, n)) / r, for rows of Z."""
        w = shares(Z.unflatten(-1, (self.splits, self.skills)), p.training)  # (rows, P, K)
        A = torch.einsum("tpk,pkrd->trpd", w, p.A).flatten(2)
        return torch.einsum("tpk,pkdr->tpdr", w, p.B).flatten(1, 2) / self.r, A

    def layer(self, L: Affine, p: Tensors) -> Map:
        if p.training or len(p.k) > 1:
            return ByTask(L, p.k, lambda k: self.mixed(p, p.Z[k]))
        (B,), (A,) = self.mixed(p, p.Z[p.k])
        return Affine(L.op + chain(B, A), L.bias)
