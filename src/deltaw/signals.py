"""Values of the current pass that formulas may read (`Signal("hidden")`): each has one producer, run before the model.

A name may carry a text behind a space, which its producer gets: Signal("positions f7+l7"). What a producer has to know
of earlier passes over the same key/value cache is kept on the cache itself, so that copies of it keep it too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .errors import SpecError
from .methods.gating import Rule, rule
from .session import session
from .sites.prompt import cached, first_tensor, memory

Producer = Callable[..., Tensor]
PRODUCERS: dict[str, Producer] = {}


def produces(name: str) -> Callable[[Producer], Producer]:
    def register(f: Producer) -> Producer:
        PRODUCERS[name] = f
        return f

    return register


def produce(signal: str, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The value of a signal in the pass that the model is called with."""
    name, _, text = signal.partition(" ")
    return PRODUCERS[name](model, args, kwargs, text) if text else PRODUCERS[name](model, args, kwargs)


@produces("hidden")
def hidden(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The last hidden state (batch, tokens, d) of the base alone, from a first pass without gradient."""
    cache = kwargs.get("past_key_values")
    if cache is not None and getattr(cache, "get_seq_length", lambda: 1)() > 0:
        raise SpecError("this adapter looks at the whole input in a first pass; call the model with use_cache=False")
    plain = {k: v for k, v in kwargs.items() if k not in ("labels", "past_key_values")}
    plain |= {"output_hidden_states": True, "use_cache": False, "return_dict": True}
    with torch.no_grad():
        out = model.forward(*args, **plain)
    states = getattr(out, "hidden_states", None)
    if not states:
        raise SpecError(
            f"{type(model).__name__} gives no hidden states; the signal 'hidden' needs a transformers model"
        )
    return states[-1]  # type: ignore[no-any-return]


class Ride:
    """A memory for the length of one pass, one per adapter."""

    def __init__(self) -> None:
        self.of: dict[str, dict[Any, Any]] = {}

    def __call__(self, owner: str) -> dict[Any, Any]:
        return self.of.setdefault(owner, {})

    def __getstate__(self) -> dict[str, Any]:  # a copy of the model is in no pass
        return {"of": {}}


@produces("ride")
def ride(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What rides along from block to block."""
    return Ride()


@produces("tasks")
def tasks(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The number of the task of every row, (rows,), or (1,) for all: what `deltaw.tasks` says, else 0."""
    x, given = first_tensor(args, kwargs), session(model).tasks
    return torch.zeros(1, dtype=torch.int64, device=x.device) if given is None else given.reshape(-1).to(x.device)


def stated(model: nn.Module, wanted: Iterable[str]) -> dict[str, Tensor] | None:
    """The values of signals that are stated and not computed from an input, where they are the same for all rows: then a
    formula that reads them may be one of weights. None if any is not."""
    given = session(model).tasks
    if not set(wanted) <= {"tasks"} or (given is not None and given.numel() > 1):
        return None
    device = next((p.device for p in model.parameters()), None)
    return {"tasks": (torch.zeros(1, dtype=torch.int64) if given is None else given.reshape(1)).to(device)}


@produces("positions")
def positions(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], text: str) -> Tensor:
    """True at the tokens of this pass that a rule picks (see methods.gating), in the shape of the tokens.

    Positions are those of a row's prompt, padding apart: all tokens of the first pass over a cache, unless labels or
    `deltaw.prompts` say where it ends. Tokens decoded after it are none of its first or last ones, and come after an
    invocation if the prompt held it.
    """
    picked, x = rule(text), first_tensor(args, kwargs)
    lead = x.shape[:-1] if x.is_floating_point() else x.shape
    rows, tokens = (lead[0], lead[1]) if len(lead) == 2 else (1, lead.numel())
    if picked.everywhere:
        return torch.ones(lead, dtype=torch.bool, device=x.device)
    real, before = _real(kwargs, rows, tokens, x.device)
    shared, earlier = session(model), memory(kwargs.get("past_key_values"))
    if picked.after:
        was = earlier.get(text)
        if was is not None and len(was) != rows:
            if rows % len(was):
                raise SpecError(f"the cache was filled with {len(was)} rows; this pass has {rows}")
            was = was.repeat_interleave(rows // len(was))
        if was is not None and tokens == 1:  # decoding goes on as the prompt has left it
            here, now = was[:, None], was
        else:
            here, now = _after(picked.after, _ids(model, args, kwargs, x).reshape(rows, tokens), real, was)
        shared.notes[text] = now
    else:
        shared.notes[text] = torch.ones((), dtype=torch.bool)
        if text in earlier:
            return torch.zeros(lead, dtype=torch.bool, device=x.device)
        here = _ends(picked, real & _asked(shared.prompts, kwargs, rows, tokens, real), before)
    return here.reshape(lead)


def _real(kwargs: dict[str, Any], rows: int, tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(which tokens of this pass are no padding, how many real ones of each row lie in the cache)."""
    mask, seen = kwargs.get("attention_mask"), cached(kwargs.get("past_key_values"))
    seen -= sum(memory(kwargs.get("past_key_values")).get("prefix", ()))  # a prompt in front of the text
    if mask is not None and mask.dim() == 2 and mask.shape[1] >= tokens:
        mask = mask.to(device) != 0
        return mask[:, mask.shape[1] - tokens :], mask[:, : mask.shape[1] - tokens].sum(1, keepdim=True)
    if mask is not None:
        raise SpecError(
            f"positions are counted without padding, which an attention_mask of shape {tuple(mask.shape)} does not tell; "
            "give the two-dimensional one (batch, tokens)"
        )
    position = kwargs.get("position_ids")
    if position is not None and not seen and not torch.compiler.is_compiling() and bool((position.diff(dim=-1) <= 0).any()):
        raise SpecError("a rule about positions cannot tell apart several texts packed into one row; do not pack them")
    ones = torch.ones(rows, tokens, dtype=torch.bool, device=device)
    return ones, ones.new_full((rows, 1), seen, dtype=torch.int64)


def _ids(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], x: Tensor) -> Tensor:
    if not x.is_floating_point():
        return x
    own = getattr(model, "token_ids", None)  # a model with another input may say what its tokens are
    if own is None:
        raise SpecError("an adapter that waits for a sequence of token ids needs them: call the model with input_ids")
    return own(*args, **kwargs)  # type: ignore[no-any-return]


def _after(wanted: tuple[int, ...], ids: Tensor, real: Tensor, was: Tensor | None) -> tuple[Tensor, Tensor]:
    """(tokens from the start of the last occurrence on, else as before; whether a row is active at its end)."""
    k, (rows, tokens) = len(wanted), ids.shape
    t = torch.arange(tokens, device=ids.device)
    start = torch.full((rows,), -1, device=ids.device)
    if tokens >= k:
        hit = (ids.unfold(1, k, 1) == torch.tensor(wanted, device=ids.device)).all(-1) & real.unfold(1, k, 1).all(-1)
        start = torch.where(hit, t[: tokens - k + 1], -1).amax(1)
    found = start >= 0
    was = torch.zeros_like(found) if was is None else was
    return torch.where(found[:, None], t >= start[:, None], was[:, None]), found | was


def _asked(ends: Tensor | None, kwargs: dict[str, Any], rows: int, tokens: int, real: Tensor) -> Tensor:
    """Which tokens of a first pass are the prompt."""
    t = torch.arange(tokens, device=real.device)
    labels = kwargs.get("labels")
    if ends is None and labels is not None and labels.shape == real.shape:
        ends = prompt_ends(labels)
    if ends is None:
        return torch.ones_like(real)
    if len(ends) != rows:
        raise SpecError(f"deltaw.prompts was told of {len(ends)} rows; this batch has {rows}")
    return t < ends.to(real.device)[:, None]


def prompt_ends(labels: Tensor) -> Tensor:
    """Where the prompt of every row ends: in front of its first label; the whole row where there is none."""
    known, t = labels != -100, torch.arange(labels.shape[1], device=labels.device)
    return torch.where(known, t, labels.shape[1]).amin(1)


def _ends(picked: Rule, asked: Tensor, before: Tensor) -> Tensor:
    front = before + asked.cumsum(1) - 1
    length = before + asked.sum(1, keepdim=True)
    half = length // 2
    first, last = half.clamp_max(picked.first), half.clamp_max(picked.last)
    return asked & ((front < first) | (length - 1 - front < last))
