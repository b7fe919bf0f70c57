"""deltaw convert: any adapter as a plain LoRA."""

from __future__ import annotations

from typing import Annotated

import typer

from .output import AsJson, as_json, say
from .source import Base, Dtype


def run(
    adapter: Annotated[str, typer.Argument(help="The adapter's directory, or a run's.")],
    out: Annotated[str, typer.Argument(help="Where the LoRA goes.")],
    rank: Annotated[int | None, typer.Option(help="Cut to this rank; exact factors are needed without it.")] = None,
    base: Base = None,
    dtype: Dtype = "float32",
    json: AsJson = False,
) -> None:
    """Convert an adapter to a PEFT LoRA with alpha = r, which every server reads the same way; report the error."""
    from .source import open_source, the_adapter

    _, _, adapted = open_source(str(the_adapter(adapter)), base, dtype, codes=False)
    made = adapted.to_lora(rank)
    path = made.save(out)
    worst = max(made.error, key=lambda site: made.error[site], default=None)
    if json:
        as_json({"directory": str(path), "rank": made.rank, "sites": len(made.factors), "error": made.error})
        return
    say(f"{path}: LoRA of rank {made.rank} at {len(made.factors)} sites")
    if worst is not None and made.error[worst] > 0:
        say(f"relative error of the weight change: {made.error[worst]:.3g} at most ({worst})")
    else:
        say("exact: the factors are those of the method's own expression")
