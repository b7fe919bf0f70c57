"""deltaw eval: what a model scores on held-out rows."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .output import AsJson, as_json, say, table
from .source import MODEL_HELP, Base, Dtype


def run(
    source: Annotated[str, typer.Argument(help=f"A run, an adapter's directory, or a model. {MODEL_HELP}")],
    data: Annotated[
        str | None, typer.Argument(help="jsonl, csv or parquet; by default the run's own held-out file.")
    ] = None,
    base: Base = None,
    dtype: Dtype = "float32",
    limit: Annotated[int | None, typer.Option(help="Only the first rows.")] = None,
    system: Annotated[str | None, typer.Option(help="A system prompt; by default the run's.")] = None,
    exact: Annotated[
        bool | None, typer.Option(help="Generate and count equal answers; default: for prompt/completion.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 64,
    batch_size: Annotated[int, typer.Option(help="Rows at a time.")] = 8,
    compare: Annotated[bool, typer.Option(help="Also score the base without the adapter.")] = False,
    json: AsJson = False,
) -> None:
    """Loss, perplexity and exact matches on the completions of a file."""
    from .. import disabled
    from ..errors import SpecError
    from ..train import evaluate
    from .source import open_source

    known = of_run(source)
    data = data or known.pop("eval_path", None)
    if data is None:
        raise SpecError(f"on which data? {source} has no recipe with data.eval_path; name a file")
    options = {k: known.get(k) for k in ("system", "chat", "chat_template")} | {"format": known.get("format", "auto")}
    options |= {"system": system} if system is not None else {}
    options |= {"limit": limit, "exact": exact, "max_new_tokens": max_new_tokens, "batch_size": batch_size}
    model, tokenizer, adapted = open_source(source, base, dtype)
    scores = {"adapter" if adapted else "model": evaluate(model, tokenizer, data, **options)}
    if compare and adapted is not None:
        with disabled(model):
            scores["base"] = evaluate(model, tokenizer, data, **options)
    if json:
        as_json(scores)
        return
    numbers = ("rows", "labels", "loss", "perplexity", "correct", "exact_match")
    table(["", *numbers], [[who, *(s.get(n) for n in numbers)] for who, s in scores.items()])
    for sample in next(iter(scores.values())).get("samples", []):
        say(
            f"{'right' if sample['correct'] else 'wrong'}: {sample['answer'].strip()!r}, expected {sample['expected'].strip()!r}"
        )


def of_run(source: str) -> dict[str, Any]:
    """The data section of the run's recipe, or nothing."""
    from .source import adapter_directory, recipe_of

    return dict(recipe_of(adapter_directory(source)).get("data") or {})
