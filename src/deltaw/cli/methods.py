"""deltaw methods: the registry as a table."""

from __future__ import annotations

from typing import Annotated

import typer

from .output import AsJson, as_json, say, table

OTHERS = ("key", "class", "axis", "paper", "status", "", "summary")


def run(
    axis: Annotated[str | None, typer.Option(help="Only this axis: structure, wrap, route, stream, prefix, update, init, rules.")] = None,
    matrix: Annotated[bool, typer.Option("--matrix", help="What each can do, found out by doing it.")] = False,
    compositions: Annotated[
        bool, typer.Option("--compositions", help="What each can be composed with: wrappers, inits, a quantised base.")
    ] = False,
    peft: Annotated[bool, typer.Option("--peft", help="With --matrix: PEFT's cells beside ours, found out by running it.")] = False,
    only: Annotated[list[str] | None, typer.Option("--only", help="Only this method; may be repeated.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a matrix as Markdown.")] = False,
    json: AsJson = False,
) -> None:
    """List everything in the registry with its facts; or, as a matrix, what each can do and be composed with."""
    from .. import catalogue
    from ..errors import SpecError, nearest
    from ..spec import METHODS

    if axis is not None and axis not in catalogue.axes():
        raise SpecError(f"no axis '{axis}'{nearest(axis, catalogue.axes())} (known: {', '.join(catalogue.axes())})")
    keys = [k for k in METHODS if axis is None or METHODS[k].axis == axis]
    wanted = {pair for k in only or () for pair in catalogue.named(k)}  # an unknown one is an error
    if only:
        keys = [k for k in keys if (METHODS[k].axis, k) in wanted]
    if matrix or compositions:
        if not keys:
            raise SpecError("a matrix is one of structures: there is none among what was asked for")
        _matrix(keys, compositions, peft, markdown, json)
        return
    if peft or markdown:
        raise SpecError("--peft and --markdown belong to a matrix: add --matrix (or --compositions)")
    rows = [catalogue.entry(METHODS[k]) for k in keys]
    others = [r for r in catalogue.dynamics() if axis in (None, r["axis"]) and (not only or (r["axis"], r["key"]) in wanted)]
    if json:
        as_json(rows + others)
        return
    columns = (
        "key",
        "class",
        "axis",
        "paper",
        "status",
        "mergeable",
        "exact_lora_rank",
        "needs_dense_base",
        "identity_at_start",
    )
    heads = ("key", "class", "axis", "paper", "status", "merges", "LoRA rank", "dense base", "identity")
    if rows:
        table(heads, [[r[c] for c in columns] for r in rows])
    if others:
        table(OTHERS, [[*(r[c] for c in OTHERS[:5]), catalogue.notes(r), r["summary"]] for r in others])
    counts = [f"{len(rows)} methods"] * bool(rows) + [f"{len(others)} update rules, initialisations and rules"] * bool(others)
    say(f"{' and '.join(counts) or 'nothing'}; `deltaw show KEY` for one of them")


def _matrix(keys: list[str], compositions: bool, peft: bool, markdown: bool, json: bool) -> None:
    from .. import matrix

    rows = matrix.compositions(keys) if compositions else matrix.capabilities(keys)
    theirs = {}
    if peft and not compositions:
        from ..matrix import theirs as other

        theirs = other.capabilities(keys)
    if json:
        found = {"cells": rows, "peft": theirs} if peft else {"cells": rows}
        as_json({w: {k: {c: v.to_dict() for c, v in r.items()} for k, r in t.items()} for w, t in found.items()})
        return
    beside = {k: {c: v.outcome for c, v in r.items()} for k, r in theirs.items()}
    if markdown:
        say(matrix.markdown(rows, beside))
        return
    heads, cells, notes = matrix.numbered(rows, beside)
    table(["key", *heads], [[k, *row] for k, row in cells.items()])
    for number, why in notes.items():
        say(f"[{number}] {why}")
