"""deltaw merge: a base with an adapter written into it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .output import AsJson, as_json, say
from .source import Base, Dtype


def run(
    adapter: Annotated[str, typer.Argument(help="The adapter's directory, or a run's.")],
    out: Annotated[str, typer.Argument(help="Where the merged model goes.")],
    base: Base = None,
    dtype: Dtype = "auto",
    shard: Annotated[float, typer.Option(help="Largest shard, in GB.")] = 2.0,
    json: AsJson = False,
) -> None:
    """Merge an adapter into its base: a directory of safetensors shards with a certificate. The base is not touched."""
    from ..errors import SpecError
    from .source import open_source, the_adapter

    if Path(out).exists() and (not Path(out).is_dir() or any(Path(out).iterdir())):
        raise SpecError(f"{out} is not empty; a merged model is written to a new or an empty directory")
    model, tokenizer, adapted = open_source(str(the_adapter(adapter)), base, dtype, codes=False)
    merged = adapted.merge()
    path = merged.save(out, max_shard_bytes=int(shard * 1e9))
    if tokenizer is not None:
        tokenizer.save_pretrained(str(path))
    c = merged.certificate
    if json:
        as_json({"directory": str(path), **c.to_dict()})
        return
    say(f"{path}: {c.sites} sites in {c.tensors} tensors, {c.weights_changed:,} weights changed")
    if c.max_error is not None:
        say(
            f"output error on the probe: {c.max_error:.3g} at most, {c.mean_error:.3g} on average (outputs up to {c.output_scale:.3g})"
        )
    say(
        f"part of the delta lost in the weights' dtype: {c.lost:.3g} at most" + (f" ({c.lost_at})" if c.lost_at else "")
    )
    if c.untied:
        say(f"no longer tied: {', '.join(c.untied)}")
