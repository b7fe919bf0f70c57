"""Tables and pictures from records: the same records give the same bytes."""

from __future__ import annotations

from typing import Any


def columns_of(found: dict[str, Any]) -> list[str]:
    """What things are divided by, in the order of first use; every peer's own counterpart is one column."""
    return list(dict.fromkeys(column(r["under"], r["over"]) for r in found["ratios"]))


def column(under: str, over: str) -> str:
    """The heading that a ratio stands under. Where the two names differ in one part only it is that part: "peft" for
    "peft lora" under "deltaw lora", "tuned" for "floor, tuned" under "floor, default"."""
    for mark in (", ", " "):
        (a, found, b), (c, _, d) = under.partition(mark), over.partition(mark)
        if found and b == d:
            return a
        if found and mark == ", ":
            return b if a == c else under
    return under


def grid(found: dict[str, Any]) -> tuple[list[str], list[list[str | None]]]:
    """A group as a table: name, median, one column per thing it is compared with, the optimiser's share."""
    unders = columns_of(found)
    share = any("optimizer" in m for m in found["measures"].values())
    rows: list[list[str | None]] = []
    for name, m in found["measures"].items():
        cells = {column(r["under"], name): spread_text(r) for r in found["ratios"] if r["over"] == name}
        row = [name, quantity(m["median"], found["unit"]), *(cells.get(u) for u in unders)]
        if share:
            row.append(f"{100 * m['optimizer']['share']['median']:.1f} %" if "optimizer" in m else None)
        rows.append(row)
    return ["", "median", *(f"/ {u}" for u in unders), *(["optimiser's share"] if share else [])], rows


def spread_text(r: dict[str, float]) -> str:
    """Median and quartiles; an exact number has none."""
    if r["min"] == r["max"]:
        return f"{r['median']:.3f}"
    return f"{r['median']:.3f} [{r['q1']:.3f}, {r['q3']:.3f}]"


def quantity(value: float, unit: str) -> str:
    """With the unit that keeps the number between 1 and 1000."""
    scales = {
        "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")),
        "bytes": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")),
    }
    for factor, word in scales[unit]:
        if value >= factor:
            return f"{value / factor:.4g} {word}"
    factor, word = scales[unit][-1]
    return f"{value / factor:.4g} {word}"
