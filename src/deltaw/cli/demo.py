"""deltaw demo: fine-tune a real language model on this machine and show that it learned."""

from __future__ import annotations

from typing import Annotated

import typer

from .output import AsJson, as_json


def run(
    out: Annotated[str, typer.Option(help="Where the run goes.")] = "runs/demo",
    json: AsJson = False,
) -> None:
    """Fine-tune SmolLM2-135M on a reasoning task on this CPU: accuracy before and after, adapter, report."""
    from ..errors import need

    for package in ("transformers", "pydantic"):
        need(package, extra="demo")
    from ..demo import run as demo

    result = demo(out)
    if json:
        as_json(result)
