"""Cross-entropy of the labelled positions: the vocabulary is computed for them, in chunks, and for nothing else."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..session import ATTRIBUTE, Restore
from ..signals import prompt_ends
from .chunked import chunk_rows, chunked_cross_entropy
from .encode import IGNORE

# model -> are its logits what its output head gives, with nothing done to them afterwards?
_BARE: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


def label_loss(
    model: Any, batch: dict[str, Tensor], call: Callable[..., Any] | None = None, rows: int | None = None
) -> tuple[Tensor, Tensor]:
    """(sum of -log p over the labels, number of labels) of one batch; position t predicts label t + 1.

    The head sees only the hidden states that predict a label, `rows` of them at a time (by default what fits into
    128 MiB of float32 logits, at least 64), and each chunk's gradient is taken at once: see `chunked_cross_entropy`. Models that
    change the logits after the head (soft caps, scales) are found out by a first pass over two tokens, and
    have all label rows' logits computed in their own forward. call: what to run instead of the model itself (the same
    model in its DDP wrapper).
    """
    run = model if call is None else call
    labels = batch["labels"][:, 1:]
    keep = labels.ne(IGNORE)
    count = keep.sum()
    rest = {k: v for k, v in batch.items() if k != "labels"}
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    shared = model.__dict__.get(ATTRIBUTE)
    asked: Any = nullcontext() if shared is None else Restore(shared, prompts=prompt_ends(batch["labels"]))
    if shared is not None and shared.rows is not None:
        head = None  # every row of the batch has its own adapter: they must stay what they are, also at the head
    if any(map(_compiled, (model, call, head))):
        head = None  # a graph would keep the hooks it was traced with, or never see them
    if head is not None and _bare(model, head, batch["input_ids"]):
        tap = Tap(batch["labels"].shape)
        with asked:
            logits = tap.run(head, run, rest)
        if tap.untouched(logits):
            h = tap.hidden.flatten(0, 1)
            at = F.pad(keep, (0, 1)).flatten().nonzero().squeeze(1).to(h.device)
            size = rows or chunk_rows(logits.shape[-1])
            with torch.autocast(h.device.type, tap.autocast, enabled=tap.autocast is not None):
                return chunked_cross_entropy(head, h[at], labels[keep].to(h.device), size), count
        _BARE[model] = False
    with asked:
        logits = _selected(head, run, rest, keep)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(wide, labels[keep].to(logits.device), reduction="sum"), count


def _compiled(module: Any) -> bool:
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def _selected(head: Any, call: Callable[..., Any], rest: dict[str, Tensor], keep: Tensor) -> Tensor:
    """The model's own logits of the label rows; the head gets those rows only, where it is called with all of them."""
    cut: list[bool] = []

    def select(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not _all_positions(args, (keep.shape[0], keep.shape[1] + 1)):
            return None
        cut.append(True)
        return (args[0][:, :-1][keep.to(args[0].device)][None], *args[1:])

    hook = head.register_forward_pre_hook(select) if head is not None else None
    try:
        logits: Tensor = call(**rest, use_cache=False).logits
    finally:
        if hook is not None:
            hook.remove()
    return logits[0] if cut else logits[:, :-1][keep.to(logits.device)]


def _all_positions(args: tuple[Any, ...], shape: tuple[int, ...]) -> bool:
    return bool(args) and isinstance(args[0], Tensor) and args[0].dim() == 3 and tuple(args[0].shape[:2]) == shape


class Tap:
    """Takes the hidden states off in front of the head, for one call of a model.

    The head runs on none of them (so that its tensors stay in the output's graph, which DDP looks at), and one row of
    known values stands in for its logits: if the model returns that row unchanged, the head's output is the logits.
    """

    def __init__(self, shape: tuple[int, ...]):
        self.shape, self.calls = tuple(shape), 0
        self.hidden: Tensor = torch.empty(0)
        self.autocast: torch.dtype | None = None  # as the head finds it, which may not be as the caller has it
        self.probe: Tensor | None = None

    def run(self, head: Any, call: Callable[..., Any], rest: dict[str, Tensor]) -> Tensor:
        hooks = [head.register_forward_pre_hook(self._before, prepend=True), head.register_forward_hook(self._after)]
        try:
            return call(**rest, use_cache=False).logits  # type: ignore[no-any-return]
        finally:
            for hook in hooks:
                hook.remove()

    def _before(self, _: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        self.calls += 1
        if not _all_positions(args, self.shape) or len(args) != 1:
            return None
        h = self.hidden = args[0]
        kind = h.device.type
        self.autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        return (h[:1, :0],)

    def _after(self, _: Any, args: tuple[Any, ...], y: Any) -> Tensor | None:
        if not isinstance(y, Tensor) or tuple(y.shape[:-1]) != (1, 0):
            return None
        self.probe = torch.linspace(-100, 100, y.shape[-1], dtype=torch.float32, device=y.device).to(y.dtype)
        return torch.cat([y, self.probe.clone()[None, None]], 1)

    def untouched(self, logits: Tensor) -> bool:
        """Was the head called once, with everything, and is what it gave what the model returns?"""
        if self.calls != 1 or self.probe is None or tuple(logits.shape) != (1, 1, len(self.probe)):
            return False
        return torch.equal(logits[0, 0].detach().double(), self.probe.double())


@torch.no_grad()
def _bare(model: Any, head: Any, ids: Tensor) -> bool:
    """Are the model's logits its head's output? Asked once, with the first two tokens of every row; no random number of
    the run is spent on it."""
    if model not in _BARE:
        ids, kind = ids[:, :2], ids.device.type
        others = {"devices": []} if kind == "cpu" else {"devices": [ids.device], "device_type": kind}
        tap = Tap(ids.shape)
        with torch.random.fork_rng(**others):
            try:
                _BARE[model] = tap.untouched(tap.run(head, model, {"input_ids": ids}))
            except (TypeError, ValueError, RuntimeError, IndexError):  # not to be called like this, or not with no rows
                _BARE[model] = False
    return _BARE[model]
