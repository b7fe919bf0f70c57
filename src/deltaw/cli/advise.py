"""deltaw advise: rank, alpha and learning rate for a model."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from .output import AsJson, as_json, say, table
from .source import MODEL_HELP, Dtype


def run(
    source: Annotated[str, typer.Argument(help=MODEL_HELP)],
    method: Annotated[str, typer.Option(help="A method's key.")] = "lora",
    rank: Annotated[int | None, typer.Option(help="A rank that is fixed already.")] = None,
    alpha: Annotated[float | None, typer.Option(help="An alpha that is fixed already.")] = None,
    targets: Annotated[
        str, typer.Option(help="Where: all-linear, a pattern, or module names with commas.")
    ] = "all-linear",
    data: Annotated[
        str | None, typer.Option(help="Rows to learn from; short probe runs on them choose the rate.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first rows.")] = None,
    steps: Annotated[int, typer.Option(help="Steps of a probe run.")] = 10,
    batch_size: Annotated[int, typer.Option(help="Rows in a step.")] = 4,
    max_length: Annotated[int, typer.Option(help="Tokens of a row.")] = 256,
    dtype: Dtype = "float32",
    json: AsJson = False,
) -> None:
    """Recommend rank, alpha and learning rate from the model's width, the method and, with --data, short probe runs."""
    from ..study.advise import advise, prepared
    from ..train import load_base, read_rows
    from ..train.host import tune_allocator

    tune_allocator()
    model, tokenizer = load_base(source, dtype)
    ready = None if data is None else prepared(read_rows(data, limit=limit), tokenizer, max_length, data)
    where = targets.split(",") if "," in targets else targets
    found = advise(
        model, method, rank=rank, alpha=alpha, targets=where, data=ready, steps=steps, batch=batch_size,
        tell=(lambda line: None) if json else say,
    )  # fmt: skip
    if json:
        as_json(found.to_dict())
        return
    if found.probe:
        table(["rate", f"loss after {steps} steps"], [(r["lr"], r["loss"]) for r in found.probe])
    places = [] if where == "all-linear" else [f"plan.targets=[{','.join(where)}]" if isinstance(where, list) else f"plan.targets={where}"]
    words = [f"model={source}", f"data.path={data or 'ROWS'}", *places, *found.overrides]
    say(f"\ndeltaw train {shlex.join(words)}")
