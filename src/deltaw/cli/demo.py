"""deltaw demo: fine-tune a real language model on this machine and show that it learned."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .output import AsJson, as_json, say, size, table


def run(
    overrides: Annotated[list[str] | None, typer.Argument(help="Values of the recipe, e.g. plan.method.r=8")] = None,
    out: Annotated[str, typer.Option(help="Where the run goes.")] = "runs/demo",
    seed: Annotated[int, typer.Option(help="Of the questions to learn from and the adapter's start.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Few questions, only to see that it works.")] = False,
    record: Annotated[Path | None, typer.Option(help="Also write the summary to this file.")] = None,
    json: AsJson = False,
) -> None:
    """Teach SmolLM2-135M a reasoning task on this CPU: accuracy before and after, adapter, certificate, report."""
    from ..demo import run as demo

    summary = demo(out, seed=seed, quick=quick, overrides=overrides or [], progress=True)
    if record is not None:
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_bytes((Path(out) / "summary.json").read_bytes())
    if json:
        as_json(summary)
    else:
        tell(summary, Path(out))


def tell(summary: dict[str, Any], out: Path) -> None:
    from json import loads

    answers = [loads(line) for line in (out / "answers.jsonl").read_text("utf-8").splitlines()][:5]
    say("some held-out questions:")
    table(
        ["expected", "before", "after"],
        [(a["completion"], a["before"].replace("\n", " ")[:60], a["after"]) for a in answers],
    )
    before, after = 100 * summary["accuracy_before"], 100 * summary["accuracy_after"]
    say(
        f"exactly right on {summary['task']['held_out']} held-out questions: {before:.1f} % before, {after:.1f} % after"
    )
    say(f"training took {summary['train_seconds']:.0f} s; peak memory {size(summary['peak_rss_bytes'])}")
    c = summary["certificate"]
    say(f"merged: {c['weights_changed']:,} weights changed, output error {c['max_error']:.2g} at most")
    say(f"adapter: {summary['adapter_dir']}   report: {out / 'report.html'}   numbers: {out / 'summary.json'}")
    say(f"next: deltaw chat {out}")
