"""deltaw train: a run from a recipe."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from .output import AsJson, as_json, say


def run(
    recipe: Annotated[str, typer.Argument(help="A recipe, YAML.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Any value of the recipe, e.g. train.lr=1e-3 plan.method.r=32")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint of this run, bit for bit.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Fine-tune as a recipe says. Unknown keys are errors; the resolved recipe is saved with the run."""
    from ..train import run as train

    result = train(recipe, overrides=overrides or [], resume=resume)
    facts = dataclasses.asdict(result) if dataclasses.is_dataclass(result) else dict(vars(result))  # type: ignore[arg-type]
    if json:
        as_json(facts)
        return
    for name, value in facts.items():
        if isinstance(value, (str, int, float)) or hasattr(value, "__fspath__"):
            say(f"{name:<20} {value}")
