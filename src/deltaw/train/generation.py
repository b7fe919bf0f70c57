"""Batched greedy generation, and what a model scores on held-out rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import SpecError
from .data import Message, examples, read_rows
from .encode import _bos, encode, render, set_template
from .engine import held_out


@torch.no_grad()
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str | Sequence[Message]],
    *,
    system: str | None = None,
    chat: bool | None = None,
    max_new_tokens: int = 64,
    batch_size: int = 16,
) -> list[str]:
    """Greedy answers, one for each prompt, in their order; special tokens removed.

    A prompt is text or a list of messages. chat: put text into the chat template as a user turn, under `system`
    (default: where the tokenizer has a template). Rows are sorted by length and padded on the left.
    """
    if chat is None:
        chat = bool(getattr(tokenizer, "chat_template", None))
    ids = [_prompt_ids(tokenizer, p, chat, system) for p in prompts]
    pad = pad_id(tokenizer)
    device = model.get_input_embeddings().weight.device
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    out = [""] * len(ids)
    was, head = model.training, model.get_output_embeddings()
    hook = head.register_forward_pre_hook(_contiguous) if head is not None else None
    model.eval()
    try:
        for k in range(0, len(order), batch_size):
            part = order[k : k + batch_size]
            width = max(len(ids[i]) for i in part)
            x = torch.tensor([[pad] * (width - len(ids[i])) + ids[i] for i in part], device=device)
            mask = torch.tensor([[0] * (width - len(ids[i])) + [1] * len(ids[i]) for i in part], device=device)
            y = model.generate(
                input_ids=x,
                attention_mask=mask,
                generation_config=_greedy(model, tokenizer, pad, max_new_tokens),
            )
            texts = tokenizer.batch_decode(y[:, width:], skip_special_tokens=True)
            for i, text in zip(part, texts):
                out[i] = text
    finally:
        model.train(was)
        if hook is not None:
            hook.remove()
    return out


def _contiguous(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The last position is a strided slice, and of a frozen weight torch.matmul then makes a copy for every
    row: as many copies of the vocabulary's matrix as there are prompts."""
    return (args[0].contiguous(), *args[1:])


def _prompt_ids(tokenizer: Any, prompt: str | Sequence[Message], chat: bool, system: str | None) -> list[int]:
    if isinstance(prompt, str) and not chat:
        ids = [*_bos(tokenizer), *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    else:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
        if system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": system}, *messages]
        ids = tokenizer(render(tokenizer, messages, prompt=True), add_special_tokens=False)["input_ids"]
    if not ids:
        raise SpecError("generate: a prompt has no tokens")
    return list(ids)


def _greedy(model: Any, tokenizer: Any, pad: int, max_new_tokens: int) -> Any:
    """A configuration of our own: the one shipped with a model may sample, or warn about what greedy search ignores."""
    from transformers import GenerationConfig

    own = getattr(model, "generation_config", None)
    shipped = getattr(own, "eos_token_id", None)
    ends = {tokenizer.eos_token_id, *(shipped if isinstance(shipped, (list, tuple)) else [shipped])} - {None}
    return GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        num_beams=1,
        use_cache=True,
        max_new_tokens=max_new_tokens,
        pad_token_id=pad,
        eos_token_id=sorted(ends) or None,
        bos_token_id=tokenizer.bos_token_id,
    )


def pad_id(tokenizer: Any) -> int:
    """A token to pad with; what it is does not matter, padding is masked everywhere."""
    for t in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if t is not None:
            return int(t)
    return 0


def evaluate(
    model: Any,
    tokenizer: Any,
    data: str | Path | Sequence[Mapping[str, Any]],
    *,
    format: str = "auto",
    split: str = "train",
    limit: int | None = None,
    system: str | None = None,
    chat: bool | None = None,
    chat_template: str | None = None,
    max_length: int | None = None,
    batch_size: int = 8,
    exact: bool | None = None,
    max_new_tokens: int = 64,
    samples: int = 5,
) -> dict[str, Any]:
    """{"loss", "perplexity", "labels", "rows"} on the completions of a file or list of rows.

    The loss is per label token over all rows. exact: also generate, and count answers that equal the expected one up to
    white space at the ends ("exact_match", "correct", and the first `samples` answers); by default for
    prompt/completion rows. Errors: SpecError as for training data.
    """
    where = str(data) if isinstance(data, (str, Path)) else "data"
    set_template(tokenizer, chat_template)
    rows = read_rows(data, split, limit) if isinstance(data, (str, Path)) else list(data)[:limit]
    if chat is None:
        chat = bool(getattr(tokenizer, "chat_template", None))
    found, kind = examples(rows, format, chat=chat, system=system, where=where)
    encoded = encode(found, tokenizer, max_length)
    if not encoded.items:
        raise SpecError(f"{where}: no row has anything to score within max_length={max_length}")
    device = model.get_input_embeddings().weight.device
    total, count = held_out(model, encoded, batch_size, pad_id(tokenizer), device).tolist()
    loss = total / count
    out: dict[str, Any] = {
        "rows": len(rows),
        "format": kind,
        "labels": int(count),
        "loss": loss,
        "perplexity": math.exp(min(loss, 700)),
        "notes": encoded.notes(max_length),
    }
    if exact is None:
        exact = kind == "prompt_completion"
    if exact:
        if kind == "text":
            raise SpecError(f"{where}: plain text has no answers to compare; exact match needs prompts and completions")
        answers = generate(
            model,
            tokenizer,
            [e.question for e in found],
            chat=False,
            max_new_tokens=max_new_tokens,
            batch_size=2 * batch_size,
        )
        right = [a.strip() == e.answer.strip() for a, e in zip(answers, found)]
        out["correct"], out["exact_match"] = sum(right), sum(right) / len(right)
        out["samples"] = [
            {"prompt": _last(e.question), "expected": e.answer, "answer": a, "correct": ok}
            for e, a, ok in list(zip(found, answers, right))[:samples]
        ]
    return out


def _last(question: str | list[Message]) -> str:
    return question if isinstance(question, str) else question[-1]["content"]
