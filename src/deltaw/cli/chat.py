"""deltaw chat: talk to a model, with and without its adapter."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from .output import say
from .source import MODEL_HELP, Base, Dtype

HELP = (
    "/base answers without the adapter until /adapter; /reset forgets the conversation; /quit or end of input leaves."
)


def run(
    source: Annotated[str, typer.Argument(help=f"A run, an adapter's directory, or a model. {MODEL_HELP}")],
    base: Base = None,
    dtype: Dtype = "float32",
    system: Annotated[str | None, typer.Option(help="A system prompt; by default the run's.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token every time.")] = 0.0,
) -> None:
    """Chat in the terminal. Lines that start with / are commands; /help lists them."""
    from contextlib import nullcontext

    from .. import disabled
    from .eval import of_run
    from .source import open_source

    model, tokenizer, adapted = open_source(source, base, dtype)
    if system is None:
        system = of_run(source).get("system")
    start: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    messages, off = list(start), False
    if sys.stdin.isatty():
        say(HELP)
    while (line := ask()) is not None and line != "/quit":
        if line == "/reset":
            messages = list(start)
        elif line in ("/base", "/adapter"):
            off = line == "/base"
        elif line.startswith("/"):
            say(HELP)
        elif line:
            messages.append({"role": "user", "content": line})
            with disabled(model) if off and adapted else nullcontext():
                text = answer(model, tokenizer, messages, max_new_tokens, temperature)
            messages.append({"role": "assistant", "content": text})


def ask() -> str | None:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None


def answer(model: Any, tokenizer: Any, messages: list[dict[str, str]], max_new_tokens: int, temperature: float) -> str:
    """Stream one answer to the terminal and return it. Without a chat template the last line is simply continued."""
    from transformers import GenerationConfig, TextStreamer

    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    else:
        ids = tokenizer(messages[-1]["content"], return_tensors="pt")["input_ids"]
    ids = ids.to(model.device)
    chosen = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    own = getattr(model, "generation_config", None)
    ends = getattr(own, "eos_token_id", None) or tokenizer.eos_token_id
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    config = GenerationConfig(max_new_tokens=max_new_tokens, eos_token_id=ends, pad_token_id=pad, **chosen)
    out = model.generate(
        input_ids=ids,
        attention_mask=ids.new_ones(ids.shape),
        generation_config=config,
        streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
    )
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
