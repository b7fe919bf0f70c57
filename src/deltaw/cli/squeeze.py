"""deltaw squeeze: an adapter at another rank."""

from __future__ import annotations

from typing import Annotated

import typer

from .output import AsJson, as_json, say, size, table
from .source import Base, Dtype


def run(
    adapter: Annotated[str, typer.Argument(help="The adapter's directory, or a run's.")],
    out: Annotated[str, typer.Option("--out", "-o", help="Where the LoRA goes: a new directory.")],
    rank: Annotated[int | None, typer.Option(help="This rank at every site; above the present one it grows: same function, more terms.")] = None,
    error: Annotated[float | None, typer.Option(help="The fewest numbers that lose at most this share of |dW| in all, 0.01 say.")] = None,
    budget: Annotated[str | None, typer.Option(help="The least loss in at most so many bytes of float32: 2MB, 512KiB.")] = None,
    base: Base = None,
    dtype: Dtype = "float32",
    json: AsJson = False,
) -> None:
    """Squeeze an adapter to other ranks, or grow it: the nearest LoRA, with what it loses stated site by site. The result is a plain LoRA."""
    from ..errors import StateMismatch
    from ..squeeze import squeeze
    from .source import open_source, the_adapter

    _, _, adapted = open_source(str(the_adapter(adapter)), base, dtype)
    if adapted is None:
        raise StateMismatch(f"{adapter} holds no adapter")
    found = squeeze(adapted, rank=rank, error=error, budget=budget)
    path = found.save(out)
    numbers = sum(B.numel() + A.numel() for B, A in found.factors.values())
    rows = [{"site": s, "rank": found.ranks[s], "error": found.errors[s]} for s in found.factors]
    if json:
        as_json({"directory": str(path), "error": found.error, "numbers": numbers, "sites": rows})
        return
    table(["site", "rank", "lost of |dW|"], [[r["site"], r["rank"], r["error"]] for r in rows])
    ranks = list(found.ranks.values())
    say(f"{path}: LoRA of rank {min(ranks)} to {max(ranks)} at {sum(r > 0 for r in ranks)} sites, {size(4 * numbers)} in float32; {found.error:.2%} of |dW| lost")
