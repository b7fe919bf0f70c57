"""deltaw plan: what a plan would do to a model."""

from __future__ import annotations

from typing import Annotated

import typer

from .output import AsJson, as_json, say, size, table
from .source import MODEL_HELP


def run(
    source: Annotated[str, typer.Argument(help=f"A recipe (.yaml), or a model. {MODEL_HELP}")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Recipe values, e.g. plan.method=vera plan.method.r=64")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Batch x length, for the activation estimate.")] = 1024,
    json: AsJson = False,
) -> None:
    """Preview a plan: the sites it matches, trainable parameters and memory. Nothing is attached."""
    from .. import preview
    from ..errors import SpecError
    from ..train import load_base
    from ..train.recipe import Recipe

    is_recipe = source.endswith((".yaml", ".yml"))
    recipe = Recipe.of(source if is_recipe else {"model": source, "plan": "lora"}, overrides or [])
    if recipe.model is None:
        raise SpecError(f"{source} names no model; add model=... to the command")
    model, _ = load_base(recipe.model, recipe.train.dtype)
    seen = preview(model, recipe.the_plan(), tokens)
    if json:
        as_json(seen.to_dict())
        return
    table(
        ["site", "method", "kind", "shape", "trainable"],
        [(r["name"], r["method"], r["kind"], "x".join(map(str, r["shape"])), r["trainable"]) for r in seen.rows],
    )
    say(
        f"{len(seen.rows)} sites, {seen.trainable:,} trainable ({100 * seen.trainable / max(seen.base, 1):.3f} % of "
        f"{seen.base:,}), optimiser {size(seen.optimizer_bytes)}, activations for the deltas "
        f"{size(seen.activation_bytes)} at {tokens} tokens"
    )
