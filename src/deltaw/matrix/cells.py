"""One cell of a matrix: try it, and keep the answer or the reason."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import DeltawError
from ..testing.laws import LawBroken, NotApplicable

YES, NO, BROKEN = "yes", "no", "broken"


@dataclass(frozen=True)
class Cell:
    """outcome "yes", "no" or "broken"; detail: how it works, or why not. error: the type of the refusal."""

    outcome: str
    detail: str = ""
    error: str = ""

    @property
    def works(self) -> bool:
        return self.outcome == YES

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def attempt(run: Callable[[], str | None]) -> Cell:
    """Do it. What it returns says how; a DeltawError says why not; anything else is a fault."""
    try:
        return Cell(YES, run() or "")
    except (DeltawError, NotApplicable) as why:
        return Cell(NO, str(why), type(why).__name__)
    except LawBroken as fault:
        return Cell(BROKEN, str(fault), type(fault).__name__)
    except Exception as fault:
        return Cell(BROKEN, f"{type(fault).__name__}: {fault}", type(fault).__name__)


def first(items: Iterable[Any], run: Callable[[Any], str | None]) -> Cell:
    """The first of several configurations that works; where none does, the first one's reason."""
    cells: list[Cell] = []
    for item in items:
        cell = attempt(lambda item=item: run(item))  # type: ignore[misc]
        if cell.works:
            how = f"as {item}" if cells else ""
            return Cell(YES, "; ".join(t for t in (how, cell.detail) if t))
        if cell.outcome == BROKEN:
            return cell
        cells.append(cell)
    return cells[0]


Rows = dict[str, dict[str, Cell]]


def numbered(
    rows: Rows, others: dict[str, dict[str, str]] | None = None, other: str = "PEFT"
) -> tuple[list[str], dict[str, list[str]], dict[int, str]]:
    """Columns, texts by row, and the reasons by the number that stands at every "no"; `others` are cells to show beside."""
    columns = list(dict.fromkeys(c for row in rows.values() for c in row))
    notes: dict[str, int] = {}
    texts: dict[str, list[str]] = {}
    for key, row in rows.items():
        texts[key] = []
        for c in columns:
            cell = row.get(c)
            text = "" if cell is None else cell.outcome
            if cell is not None and not cell.works:
                text += f" [{notes.setdefault(_plain(cell.detail), len(notes) + 1)}]"
            theirs = (others or {}).get(key, {}).get(c)
            texts[key].append(text + (f" ({other}: {theirs})" if theirs else ""))
    return columns, texts, {n: why for why, n in notes.items()}


def markdown(rows: Rows, others: dict[str, dict[str, str]] | None = None, other: str = "PEFT") -> str:
    """The table, with the reasons below it."""
    columns, texts, notes = numbered(rows, others, other)
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| `{key}` | " + " | ".join(row) + " |" for key, row in texts.items()]
    return "\n".join([*lines, "", *(f"{n}. {why}" for n, why in notes.items())]) + "\n"


def _plain(detail: str) -> str:
    """A reason without the name of the tiny model's layer, so that the same reason is the same note."""
    return re.sub(r"^(?:[\w]+\.)+[\w]+: ", "", detail).replace("\n", " ")
