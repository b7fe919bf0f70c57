"""deltaw demo: fine-tune a real language model on this machine and show that it learned."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .output import AsJson, as_json, say, size, table

SHOWN = 4


def run(
    out: Annotated[str, typer.Option(help="Where the run goes.")] = "runs/demo",
    seed: Annotated[int, typer.Option(min=0, help="Of the training questions, their order and the start.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A few questions only: does it work here?")] = False,
    record: Annotated[str | None, typer.Option(help="Also write the summary to this file.")] = None,
    json: AsJson = False,
) -> None:
    """Fine-tune SmolLM2-135M on a reasoning task on this CPU: accuracy before and after, adapter, report."""
    from ..errors import need

    for package in ("transformers", "pydantic"):
        need(package, extra="demo")
    from ..demo import run as demo
    from ..train import Bar

    result = demo(out, seed=seed, quick=quick, progress=Bar())
    if record:
        Path(record).parent.mkdir(parents=True, exist_ok=True)
        Path(record).write_bytes((Path(out) / "summary.json").read_bytes())
    if json:
        as_json(result)
    else:
        show(result, Path(out))


def show(s: dict[str, Any], out: Path) -> None:
    import json

    with (out / "answers.jsonl").open(encoding="utf-8") as file:
        samples = [json.loads(line) for line, _ in zip(file, range(SHOWN))]
    table(
        ["question", "before", "after", "right"],
        [[a["prompt"].splitlines()[-1], a["before"], a["after"], a["after"] == a["completion"]] for a in samples],
    )
    say(
        f"accuracy on {s['task']['held_out']} held-out questions: {100 * s['accuracy_before']:.1f} % before, "
        f"{100 * s['accuracy_after']:.1f} % after" + (" (a quick run: the numbers mean nothing)" if s["quick"] else "")
    )
    say(
        f"training: {s['train_seconds']:.0f} s, {s['tokens']:,} tokens; everything: {s['seconds']['all']:.0f} s; "
        f"peak memory: {size(s['peak_rss_bytes'])}"
    )
    c, peft = s["certificate"], s["peft"]
    say(f"merged: {c['weights_changed']:,} weights changed, largest error of a logit {c['max_error']:.2g}")
    if peft:
        say(f"PEFT {peft['version']} reads the adapter: logits differ by at most {peft['max_logit_difference']:.2g}")
    say(f"adapter: {s['adapter_dir']}   report: {out / 'report.html'}   summary: {out / 'summary.json'}")
    say(f"next: deltaw chat {out} | deltaw eval {out} | deltaw merge {out} OUT")
