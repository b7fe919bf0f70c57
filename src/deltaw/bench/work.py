"""What a candidate does in one training step: forward, one of the losses, backward, update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import SpecError
from ..train.encode import IGNORE
from ..train.loss import label_loss
from .clock import now
from .contender import Contender
from .setting import Setting
from .subject import Subject, hidden


def forward_backward(c: Contender, subject: Subject) -> None:
    """Forward, and the gradients of the input and of everything trained."""
    x = subject.x.detach().requires_grad_()
    hidden(c.model, x).backward(subject.g)
    assert x.grad is not None


def update(c: Contender) -> None:
    """Clip, step, clear."""
    assert c.optimizer is not None
    torch.nn.utils.clip_grad_norm_(c.trained, 1.0)
    c.optimizer.step()
    c.optimizer.zero_grad(set_to_none=True)


def step_of(c: Contender, work: Callable[[], None]) -> Callable[[], dict[str, float]]:
    """A timed training step in two parts: `step` (forward and backward) and `optimizer`."""

    def run() -> dict[str, float]:
        began = now()
        work()
        middle = now()
        if c.optimizer is None:
            return {"step": middle - began}
        update(c)
        return {"step": middle - began, "optimizer": now() - middle}

    return run


def batch_of(setting: Setting, subject: Subject) -> dict[str, Tensor]:
    """Random tokens; the last share `labels` of every row has labels, as a completion after its prompt has."""
    model: Any = subject.base
    if not hasattr(model, "get_decoder"):
        raise SpecError("a loss needs a language model: leave --layer out")
    rows, tokens = setting.rows_tokens
    ids = torch.randint(
        0, model.config.vocab_size, (rows, tokens), generator=torch.Generator().manual_seed(setting.seed)
    )
    labels = torch.full_like(ids, IGNORE)
    first = tokens - max(1, round(setting.labels * tokens))
    labels[:, first:] = ids[:, first:]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def mean_loss(loss: str, model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The mean over the labels, by either way."""
    if loss == "ordinary":
        return model(**batch, use_cache=False).loss  # type: ignore[no-any-return]
    total, count = label_loss(model, batch)
    return total / count


def backward(loss: str, c: Contender, subject: Subject, batch: dict[str, Tensor]) -> None:
    """Forward and backward of one candidate, with the gradient of the embeddings as everywhere here."""
    if loss == "hidden":
        return forward_backward(c, subject)
    model: Any = c.model
    hook = model.get_input_embeddings().register_forward_hook(lambda m, args, out: out.detach().requires_grad_())
    try:
        mean_loss(loss, model, batch).backward()  # type: ignore[no-untyped-call]
    finally:
        hook.remove()
