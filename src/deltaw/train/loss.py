"""Cross-entropy of the labelled positions: the vocabulary is computed for them and for nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from .encode import IGNORE


def label_loss(model: Any, batch: dict[str, Tensor], call: Callable[..., Any] | None = None) -> tuple[Tensor, Tensor]:
    """(sum of -log p over the labels, number of labels) of one batch; position t predicts label t + 1.

    The head sees only the hidden states that predict a label (a pre-hook selects them), so its cost and the logits'
    memory shrink to the labelled share. Works for every causal model whose logits come from its output embedding; others have all logits selected.
    call: what to run instead of the model itself (the same model in its DDP wrapper).
    """
    labels = batch["labels"][:, 1:]
    keep = labels.ne(IGNORE)
    rest = {k: v for k, v in batch.items() if k != "labels"}
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None

    def select(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        h = args[0]
        return (h[:, :-1][keep], *args[1:]) if h.dim() == 3 and h.shape[:2] == batch["labels"].shape else None

    hook = head.register_forward_pre_hook(select) if head is not None else None
    try:
        logits = (call or model)(**rest, use_cache=False).logits
    finally:
        if hook is not None:
            hook.remove()
    if logits.dim() == 3:
        logits = logits[:, :-1][keep]
    return F.cross_entropy(logits.float(), labels[keep], reduction="sum"), keep.sum()
