"""To plain LoRA: exact where the algebra has factors, cut at a rank with the error otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import NotLinear, NotMergeable
from .lowrank import core_svd
from .ops import Affine, Map, Op, delta, factors, watch_dense
from .session import combine
from .signals import stated

if TYPE_CHECKING:
    from .attach import Adapted

Pair = tuple[Tensor, Tensor]


@dataclass
class Converted:
    """site -> (B, A) with the scale folded into B; `error` is the relative Frobenius error per site, 0 where exact."""

    factors: dict[str, Pair]
    error: dict[str, float]
    adapted: Any

    @property
    def rank(self) -> int:
        """The largest rank in use."""
        return max((B.shape[1] for B, _ in self.factors.values()), default=0)

    def save(self, directory: Any) -> Any:
        """A server-safe PEFT LoRA: r = alpha at every site, so that every reader agrees on the scale."""
        from .files import save_lora

        return save_lora(self, directory)


def site_layer(adapted: Adapted, a: Any) -> Map:
    """The map an adapter (or a blend of several) makes of one site, whatever else is live."""
    from .attach import _address

    shared = adapted._attached()
    module, key = _address(a)
    place = shared.places[module]
    live = [(e, w) for name, w in adapted.parts if (e := place.entry(name, key)) is not None]
    signals: dict[str, Tensor] = {}
    for entry, _ in live:
        found = stated(adapted.model, entry.signals.values())
        if found is None:
            raise NotMergeable(f"{a.site.name}: {entry.method.key} depends on the input, so no weight equals it")
        signals |= found
    modes = [entry.training for entry, _ in live]
    try:
        for entry, _ in live:
            entry.training = False  # what is exported is the evaluation formula
        return combine(a.site, live, signals)
    finally:
        for (entry, _), mode in zip(live, modes):
            entry.training = mode


def site_delta(adapted: Adapted, a: Any) -> Op:
    """The additive change of the weight at one site, as an operator in the layout of that site (m, n)."""
    L, base = site_layer(adapted, a), a.site.leaf()
    if not isinstance(L, Affine):
        raise NotLinear(f"{a.site.name}: {type(L).__name__} of {a.method.key} is no linear map")
    if L.bias is not base.bias:
        raise BiasChanged(f"{a.site.name}: {a.method.key} changes the bias, which plain LoRA cannot hold")
    return delta(L.op, base.op)


class BiasChanged(NotMergeable):
    """The weight change alone would not be the whole change."""


@torch.no_grad()
def to_lora(adapted: Adapted, rank: int | None = None) -> Converted:
    out: dict[str, Pair] = {}
    errors: dict[str, float] = {}
    for a in adapted.assignments:
        if a.site.kind == "module":
            continue
        if a.site.kind in ("prefix", "attention"):
            raise NotMergeable(f"{a.site.name}: {a.method.key} adds places to attend to; no weight change equals it")
        if a.site.kind in ("stream", "parallel"):
            raise NotMergeable(f"{a.site.name}: {a.method.key} edits hidden states; no weight change equals it")
        op = site_delta(adapted, a)
        pair = factors(op)
        if pair is None and rank is None:
            raise NotMergeable(
                f"{a.site.name}: {a.method.key} has no exact low-rank factors; give a rank (to_lora(rank=...), --rank) to cut it, "
                "and look at the reported error"
            )
        if pair is not None and (rank is None or pair[0].shape[1] <= rank):
            out[a.site.name], errors[a.site.name] = pair, 0.0
        else:
            assert rank is not None
            out[a.site.name], errors[a.site.name] = cut(op, pair, rank)
    if not out:
        raise NotMergeable(
            f"'{adapted.name}' trains whole modules ({', '.join(a.site.name for a in adapted.assignments)}) and nothing else: "
            "there is no weight change to write as factors; save it as it is, or merge it"
        )
    return Converted(out, errors, adapted)


def cut(op: Op, pair: Pair | None, rank: int) -> tuple[Pair, float]:
    """The best (B, A) of that rank, sqrt(S) on both sides, and its relative Frobenius error."""
    if pair is not None:  # through the small core of two QR decompositions, never m x n
        U, S, V = core_svd(*pair)
    else:
        w = op.dense()
        U, S, V = torch.linalg.svd(w.to(torch.promote_types(w.dtype, torch.float32)), full_matrices=False)
    root = S[:rank].sqrt()
    total = float(torch.linalg.vector_norm(S))
    error = float(torch.linalg.vector_norm(S[rank:])) / total if total > 0 else 0.0
    return ((U[:, :rank] * root).contiguous(), (root[:, None] * V[:rank]).contiguous()), error


@torch.no_grad()
def facts(adapted: Adapted) -> dict[str, Any]:
    """What the algebra says of an attached adapter: mergeable, exact LoRA rank, whether a forward needs the dense base."""
    ranks, merges = [], True
    for a in adapted.assignments:
        try:
            pair = factors(site_delta(adapted, a))
            ranks.append(None if pair is None or a.site.kind in ("stream", "parallel") else pair[0].shape[1])
        except BiasChanged:
            ranks.append(None)
        except NotLinear:
            ranks.append(None)
            merges = False
        merges = merges and a.site.kind not in ("stream", "parallel")
    with watch_dense() as seen:
        for a in adapted.assignments:
            leaf = a.site.leaf().op
            x = torch.zeros(1, leaf.shape[1], dtype=leaf.like.dtype)
            if a.site.kind in ("linear", "opaque", "conv1d_hf"):
                a.site.module(x)
    exact = None if any(r is None for r in ranks) else max((r for r in ranks if r is not None), default=0)
    return {"mergeable": merges, "exact_lora_rank": exact, "needs_dense_base": bool(seen)}
