"""What commands print: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def say(text: str = "") -> None:
    typer.echo(text)


def as_json(data: Any) -> None:
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False, default=str))


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Numbers to the right, words to the left. A pipe gets lines of full length instead of folded ones."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    found = [list(row) for row in rows]
    out = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for k, column in enumerate(columns):
        cells = [row[k] for row in found]
        number = bool(cells) and all(isinstance(c, (int, float)) and not isinstance(c, bool) for c in cells)
        out.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in found:
        out.add_row(*(cell(c) for c in row))
    Console(width=None if sys.stdout.isatty() else 200, markup=False, highlight=False).print(out)


def cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
