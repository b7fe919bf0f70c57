"""deltaw train: a run from a recipe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from .output import AsJson, as_json, say, size


def run(
    recipe: Annotated[str, typer.Argument(help="A recipe, YAML; or none, only values: model=... data.path=...")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Any value of the recipe, e.g. train.lr=1e-3 plan.method.r=32")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the run's last checkpoint, bit for bit.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Fine-tune as a recipe says. Unknown keys are errors; the resolved recipe is saved with the run."""
    from ..report.run import write as write_page
    from ..train import run as train

    source: Any = recipe
    words = list(overrides or [])
    if "=" in recipe and not Path(recipe).exists():  # no file: values on top of LoRA on every linear layer
        words, source = [recipe, *words], {"plan": "lora"}
    result = train(source, words, resume=resume, progress=True)  # on stderr
    first = os.environ.get("RANK", "0") == "0"  # under torchrun one process writes
    page = write_page(result.dir) if first else None
    facts = {
        "report": None if page is None else str(page),
        "dir": str(result.dir),
        "adapter_dir": str(result.dir / "adapter"),
        "train_seconds": result.train_seconds,
        "tokens_per_second": result.tokens_per_second,
        "peak_rss_bytes": result.peak_rss_bytes,
        "metrics": result.metrics,
        "adapter": result.adapted.report(),
        "notes": result.notes,
    }
    if json:
        as_json(facts)
        return
    loss = {k: v for k, v in result.metrics.items() if k in ("loss", "eval_loss", "reward") and v is not None}
    say(
        f"{result.dir}: {result.train_seconds:.1f} s, {result.tokens_per_second:,.0f} tokens/s, peak memory "
        f"{size(result.peak_rss_bytes)}" + "".join(f", {k} {v:.4g}" for k, v in loss.items())
    )
    if page is not None:
        say(f"report: {page}")
    say(f"next: deltaw eval {result.dir} | deltaw chat {result.dir} | deltaw merge {result.dir} OUT")
