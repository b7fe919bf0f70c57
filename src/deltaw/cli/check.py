"""deltaw check: the laws and oracles of a method, an update rule, an initialisation or a rule."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from .output import AsJson, as_json, say, table


def run(
    key: Annotated[str | None, typer.Argument(help="A method's key, or AXIS/KEY where two axes have one.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Everything in every axis.")] = False,
    compiled: Annotated[bool, typer.Option(help="Also compare with torch.compile (seconds per method).")] = True,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="List every check.")] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes for --all, one thread each; a core each by default.")] = None,
    json: AsJson = False,
) -> None:
    """Check a method, update rule, init or rule against the laws of its axis and its oracles. Exit code 1 if anything fails."""
    from ..catalogue import named
    from ..errors import SpecError
    from ..spec import METHODS
    from ..testing import AXES

    if every == (key is not None):
        raise SpecError("name one method to check, or write --all")
    reports = []
    everything = [("", k) for k in METHODS] + [(axis, k) for axis, table in AXES.items() for k in table]
    asked = everything if every else named(str(key))
    for axis, one, report in carried_out(asked, compiled, (jobs or os.cpu_count() or 1) if every else 1):
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


def carried_out(asked: list[tuple[str, str]], compiled: bool, jobs: int) -> Iterator[tuple[str, str, Any]]:
    """(axis, key, report) of each, in their order; by several processes, which are renewed: a compiler's memory only grows."""
    if jobs == 1:
        for axis, key in asked:
            yield axis, key, one_report(axis, key, compiled)
        return
    from multiprocessing import get_context

    # not concurrent.futures: in Python 3.11 its processes are not renewed once the last of them has ended (gh-115634), and it waits for ever
    with get_context("spawn").Pool(jobs, one_thread, maxtasksperchild=10) as pool:
        for (axis, key), report in zip(asked, pool.imap(one_of_many, [(*pair, compiled) for pair in asked])):
            yield axis, key, report


def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def one_report(axis: str, key: str, compiled: bool) -> Any:
    from ..spec import METHODS
    from ..testing import AXES, check, check_axis

    return check_axis(axis, key) if axis in AXES else check(METHODS[key], compiled=compiled)


def one_of_many(asked: tuple[str, str, bool]) -> Any:
    return one_report(*asked)
