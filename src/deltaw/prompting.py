"""Around prompts: a start from a text, tasks of rows, the loss over a context that is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import SpecError
from .session import Restore, session
from .sites.prefix import Prefix, uncut

if TYPE_CHECKING:
    from .attach import Adapted


@torch.no_grad()
def prefill(adapted: Adapted, input_ids: Tensor) -> None:
    """Start keys and values from a text: those that the base alone computes for its first tokens, (1, tokens).

    For methods that hold one row of keys and values per place (cartridge, prefix tuning with h = 0). Errors: SpecError
    where the adapter holds none, or the text has fewer tokens than it has places.
    """
    from .attach import disabled

    for a in adapted.assignments:
        m, entry = a.site.shape[0], adapted.entries()[a.site.name]
        own = [t for _, t in entry.named() if t.dim() == 2 and t.shape[1] == m]
        places = sum(len(t) for t in own)
        L = entry.layer(a.site.leaf(), {}) if a.site.kind == "prefix" else None
        if not isinstance(L, Prefix) or L.kv is None or L.kv.shape != (places, m):
            raise SpecError(f"{a.site.name}: {a.method.key} holds no keys and values themselves that a text could fill")
        if input_ids.dim() != 2 or input_ids.shape[0] != 1 or input_ids.shape[1] < places:
            raise SpecError(f"a text of at least {places} tokens is needed, as (1, tokens); found {tuple(input_ids.shape)}")
        mode = adapted.model.training
        with disabled(adapted.model):
            cache = adapted.model.eval()(input_ids=input_ids[:, :places], use_cache=True).past_key_values
        adapted.model.train(mode)
        pairs = [torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers]
        kv = torch.stack(pairs).permute(3, 0, 1, 2, 4).flatten(1)  # places, layers, 2, heads, size
        for t, rows in zip(own, kv.split([len(t) for t in own])):
            t.copy_(rows)


def tasks(model: nn.Module, ids: Tensor | Sequence[int] | int) -> Restore:
    """`with deltaw.tasks(model, [0, 2]):` row i of the batch is of task ids[i], for methods that hold several tasks.

    One id stands for all rows; without this it is task 0. Errors: SpecError for a number that no attached adapter has."""
    shared, given = session(model), torch.as_tensor(ids)
    methods = [a.method for adapted in shared.adapters.values() for a in adapted.assignments]
    known = max((m.tasks for m in methods if hasattr(m, "tasks")), default=0)
    if given.is_floating_point() or given.numel() == 0 or int(given.min()) < 0 or (known and int(given.max()) >= known):
        raise SpecError(f"tasks are numbered from 0, and the attached adapters know {known}; found {given.tolist()}")
    return Restore(shared, tasks=given)


def context_loss(adapted: Adapted, batch: dict[str, Tensor], decay: float = 1.0) -> Tensor:
    """Cross-entropy over the labels of a batch and those inside the trained context (context-aware prompt tuning).

    The answers of the context's examples are learned as well: label group j from the end counts decay^j, the batch's own
    labels count 1; the mean is over the number of labels. `batch`: input_ids, labels, and attention_mask if needed.
    """
    method: Any = adapted.plan.method
    if not hasattr(method, "answers"):
        raise SpecError(f"{method.key} has no context with answers of its own; take the loss of the model")
    ids, group = method.answers()  # a label and a group number (0: no label) per soft token
    labels, rest = batch["labels"], {k: v for k, v in batch.items() if k != "labels"}
    with uncut():
        logits = adapted.model(**rest).logits
    if logits.shape[1] != len(ids) + labels.shape[1]:
        raise SpecError("the loss over a context needs that context alone in front of the input: activate this adapter only")
    order = sorted({g for g in group if g}, reverse=True)
    weight = torch.tensor([decay ** (order.index(g) + 1) if g else 0.0 for g in group], device=labels.device)
    front = torch.tensor([i if g else -100 for i, g in zip(ids, group)], device=labels.device).expand(len(labels), -1)
    target = torch.cat([front, labels], 1)[:, 1:]
    weights = torch.cat([weight.expand(len(labels), -1), torch.ones_like(labels, dtype=weight.dtype)], 1)[:, 1:]
    each = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), target.flatten(), reduction="none", ignore_index=-100)
    return (each * weights.flatten()).sum() / (target != -100).sum()
