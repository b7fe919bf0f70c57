"""deltaw methods: the registry as a table."""

from __future__ import annotations

from typing import Annotated

import typer

from .output import AsJson, as_json, say, table


def run(
    axis: Annotated[str | None, typer.Option(help="Only this axis: structure, wrap, route, stream.")] = None,
    json: AsJson = False,
) -> None:
    """List every method with its derived facts."""
    from ..catalogue import catalogue
    from ..errors import SpecError, nearest

    rows = catalogue()
    if axis is not None:
        axes = sorted({r["axis"] for r in rows})
        if axis not in axes:
            raise SpecError(f"no axis '{axis}'{nearest(axis, axes)} (known: {', '.join(axes)})")
        rows = [r for r in rows if r["axis"] == axis]
    if json:
        as_json(rows)
        return
    columns = (
        "key",
        "class",
        "axis",
        "paper",
        "status",
        "mergeable",
        "exact_lora_rank",
        "needs_dense_base",
        "identity_at_start",
    )
    heads = ("key", "class", "axis", "paper", "status", "merges", "LoRA rank", "dense base", "identity")
    table(heads, [[r[c] for c in columns] for r in rows])
    say(f"{len(rows)} methods; `deltaw show KEY` for one of them")
