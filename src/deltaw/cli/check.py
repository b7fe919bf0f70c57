"""deltaw check: the laws and oracles of a method, an update rule, an initialisation or a rule."""

from __future__ import annotations

from typing import Annotated

import typer

from .output import AsJson, as_json, say, table


def run(
    key: Annotated[str | None, typer.Argument(help="A method's key, or AXIS/KEY where two axes have one.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Everything in every axis.")] = False,
    compiled: Annotated[bool, typer.Option(help="Also compare with torch.compile (seconds per method).")] = True,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="List every check.")] = False,
    json: AsJson = False,
) -> None:
    """Check a method, update rule, init or rule against the laws of its axis and its oracles. Exit code 1 if anything fails."""
    from ..catalogue import named
    from ..errors import SpecError
    from ..spec import METHODS
    from ..testing import AXES, check, check_axis

    if every == (key is not None):
        raise SpecError("name one method to check, or write --all")
    reports = []
    everything = [("", k) for k in METHODS] + [(axis, k) for axis, table in AXES.items() for k in table]
    for axis, one in everything if every else named(str(key)):
        report = check_axis(axis, one) if axis in AXES else check(METHODS[one], compiled=compiled)
        reports.append(report)
        if json:
            continue
        if verbose:
            say(str(report))
        else:
            passed = sum(r.outcome == "passed" for r in report.results)
            oracles = f", oracles: {', '.join(report.oracles)}" if report.oracles else ""
            say(
                f"{f'{axis}/{one}' if axis in AXES else one:<18} {report.status:<9} {passed} of {len(report.results)} checks apply and hold{oracles}  {report.seconds:.1f} s"
            )
        if not verbose and report.failures:
            table(["fails", "dtype", "found"], [(r.law, r.dtype, r.detail) for r in report.failures])
    if json:
        as_json([r.to_dict() for r in reports])
    elif len(reports) > 1:
        say(f"{sum(r.ok for r in reports)} of {len(reports)} methods pass")
    if not all(r.ok for r in reports):
        raise typer.Exit(1)
