"""deltaw check: the laws and oracles of a method."""

from __future__ import annotations

from typing import Annotated

import typer

from .output import AsJson, as_json, say, table


def run(
    key: Annotated[str | None, typer.Argument(help="A method's key.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every method.")] = False,
    compiled: Annotated[bool, typer.Option(help="Also compare with torch.compile (seconds per method).")] = True,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="List every check.")] = False,
    json: AsJson = False,
) -> None:
    """Check a method against the laws of the algebra and its oracles. Exit code 1 if anything fails."""
    from ..errors import SpecError
    from ..spec import METHODS
    from ..testing import check

    if every == (key is not None):
        raise SpecError("name one method to check, or write --all")
    reports = []
    for one in METHODS if every else [key]:
        report = check(METHODS[str(one)], compiled=compiled)
        reports.append(report)
        if json:
            continue
        if verbose:
            say(str(report))
        else:
            passed = sum(r.outcome == "passed" for r in report.results)
            oracles = f", oracles: {', '.join(report.oracles)}" if report.oracles else ""
            say(
                f"{report.key:<18} {report.status:<9} {passed} of {len(report.results)} checks apply and hold{oracles}  {report.seconds:.1f} s"
            )
        if not verbose and report.failures:
            table(["fails", "dtype", "found"], [(r.law, r.dtype, r.detail) for r in report.failures])
    if json:
        as_json([r.to_dict() for r in reports])
    elif every:
        say(f"{sum(r.ok for r in reports)} of {len(reports)} methods pass")
    if not all(r.ok for r in reports):
        raise typer.Exit(1)
