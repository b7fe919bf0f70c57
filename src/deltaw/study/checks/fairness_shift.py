"""How far a low-rank fine-tuning stays behind full fine-tuning, and who pays for it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import SpecError


def posterior_kl(p: Tensor, q: Tensor, mask: Tensor | None = None) -> float:
    """Mean over positions of KL(softmax p || softmax q) in nats; p, q logits (..., vocabulary), mask (...) of those meant.

    Source: arXiv:2405.18572 (a): with p of full fine-tuning and q of the base it says how far fine-tuning went; with p of
    a rank-r adapter and q of full fine-tuning, what the rank has left out.
    """
    if p.shape != q.shape:
        raise SpecError(f"posteriors over the same positions were expected; found {tuple(p.shape)} and {tuple(q.shape)}")
    a, b = (F.log_softmax(t.detach().double(), -1) for t in (p, q))
    kl = (a.exp() * (a - b)).sum(-1)
    kept = kl if mask is None else kl[mask.bool()]
    return float(kept.mean()) if kept.numel() else 0.0


def by_rank(base: Tensor, full: Tensor, ranks: Mapping[int, Tensor], mask: Tensor | None = None) -> dict[str, Any]:
    """What a sweep over ranks says, from logits on the same text: KL(full || base), KL(rank r || full) for every r, and
    whether these fall as r grows."""
    distance = {r: posterior_kl(ranks[r], full, mask) for r in sorted(ranks)}
    steps = list(distance.values())
    return {
        "full_from_base": posterior_kl(full, base, mask),
        "rank_from_full": distance,
        "monotone": all(a >= b for a, b in zip(steps, steps[1:])),
    }


@torch.no_grad()
def lens(model: nn.Module, batch: Mapping[str, Any], read: Callable[[Tensor], Tensor] | None = None) -> list[Tensor]:
    """Logits read off the hidden state behind every block (the logit lens), the embedding first.

    read: from a hidden state to logits. By default the model's output head after its last norm, which the last of the
    hidden states of a transformers model has behind it already.
    """
    states = model(**batch, output_hidden_states=True).hidden_states
    if read is not None:
        return [read(h) for h in states]
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    if head is None:
        raise SpecError(f"{type(model).__name__} names no output head: give read=..., from a hidden state to logits")
    inner = getattr(model, "base_model", model)
    norm = next((n for w in NORMS if (n := getattr(inner, w, None)) is not None), nn.Identity())
    return [*(head(norm(h)) for h in states[:-1]), head(states[-1])]


NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")


def lens_kl(p: Sequence[Tensor], q: Sequence[Tensor], mask: Tensor | None = None) -> list[float]:
    """`posterior_kl` layer by layer."""
    return [posterior_kl(a, b, mask) for a, b in zip(p, q, strict=True)]


def bias_retained(base: float, full: float, low_rank: float) -> float:
    """The part of the base's score (of toxicity, of bias) that full fine-tuning removes and the low-rank one does not:
    0 as good as full, 1 nothing removed."""
    if base == full:
        raise SpecError("full fine-tuning has changed nothing of this score: there is no part to compare with")
    return (low_rank - full) / (base - full)


def group_gaps(correct: Sequence[bool], groups: Sequence[Hashable]) -> dict[str, Any]:
    """Accuracy by group, the largest difference between two groups, and the group that has it worst."""
    if len(correct) != len(groups) or not groups:
        raise SpecError(f"one group for every decision was expected; found {len(correct)} decisions, {len(groups)} groups")
    by: dict[Hashable, list[bool]] = {}
    for right, group in zip(correct, groups):
        by.setdefault(group, []).append(bool(right))
    accuracy = {g: sum(v) / len(v) for g, v in by.items()}
    worst = min(accuracy, key=lambda g: accuracy[g])
    return {"accuracy": accuracy, "gap": max(accuracy.values()) - accuracy[worst], "worst": worst}
