"""Panels beside each other on one pair of scales, several curves in each: an SVG that stands alone, in the reader's scheme."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .charts import WIDTH, Point, text, ticks
from .html import Safe, join, tag

STYLE = """
svg { --ink: #1c1f23; --soft: #5d6570; --rule: #dfe2e6; --one: #1b62b5; }
@media (prefers-color-scheme: dark) { svg { --ink: #e6e8ea; --soft: #9aa4af; --rule: #343a41; --one: #6cb0ff; } }
text { fill: var(--soft); font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
.strong { fill: var(--ink); font-weight: 600; } .rule { stroke: var(--rule); } .curve { stroke: var(--one); fill: none; } .dot { fill: var(--one); }
"""
LEFT, TOP, HEIGHT, TAIL, GAP = 48, 40, 220, 64, 12  # TAIL: room for the names at the ends of curves
Curves = Mapping[str, Sequence[Point]]


def marks(low: float, high: float, log: bool) -> list[float]:
    """Round numbers on an axis; on a logarithmic one 1, 2 and 5 of every decade, or the decades alone where they are many."""
    if not log:
        return ticks(low, high)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    kept = (1,) if len(decades) > 4 else (1, 2, 5)
    return [v for d in decades for k in kept if low * 0.999 <= (v := k * 10.0**d) <= high * 1.001]


def panels(found: Mapping[str, Curves], x: str, y: str, log: str = "xy", best: bool = False) -> str:
    """{panel: {curve: [(x, y)]}} as one SVG. log: the axes that are logarithmic. best: a larger mark at every curve's lowest point.

    All panels share both scales. Curves later in a panel are drawn stronger. Points that are not finite are left out.
    """
    kept = {p: {c: [q for q in v if all(map(math.isfinite, q))] for c, v in curves.items()} for p, curves in found.items()}
    points = [q for curves in kept.values() for v in curves.values() for q in v]
    if not points:
        raise ValueError("there is nothing finite to draw")
    logx, logy = "x" in log, "y" in log
    across = (min(q[0] for q in points), max(q[0] for q in points))
    up = (min(q[1] for q in points), max(q[1] for q in points))
    up = (up[0] / 1.1, up[1] * 1.1) if logy else (up[0] - 0.04 * (up[1] - up[0]), up[1])
    wide = (WIDTH - LEFT - GAP) / len(kept) - GAP - TAIL
    seen = sorted({q[0] for q in points})
    parts: list[Any] = [tag("style", Safe(STYLE)), text(LEFT, 12, y)]
    for k, (name, curves) in enumerate(kept.items()):
        parts += _panel(name, curves, LEFT + k * (wide + TAIL + GAP), wide, across, up, logx, logy, seen, k == 0, best)
    parts.append(text(WIDTH - TAIL, TOP + HEIGHT + 34, x, "end"))
    height = TOP + HEIGHT + 42
    size = {"viewBox": f"0 0 {WIDTH} {height}", "width": WIDTH, "height": height}
    return str(tag("svg", join(parts), xmlns="http://www.w3.org/2000/svg", role="img", aria_label=f"{y} over {x}", **size)) + "\n"


def _panel(
    name: str, curves: Curves, left: float, wide: float, across: Point, up: Point, logx: bool, logy: bool, seen: list[float], first: bool, best: bool
) -> list[Any]:
    def place(v: float, ends: Point, log: bool) -> float:
        low, high, v = (math.log(t) for t in (*ends, v)) if log else (*ends, v)
        return (v - low) / ((high - low) or 1.0)

    def at(q: Point) -> tuple[float, float]:
        return left + wide * place(q[0], across, logx), TOP + HEIGHT * (1 - place(q[1], up, logy))

    parts: list[Any] = [text(left, 30, name, class_="strong")]
    for v in marks(*up, logy):
        h = f"{at((across[0], v))[1]:.1f}"
        parts += [tag("line", x1=f"{left:.1f}", x2=f"{left + wide:.1f}", y1=h, y2=h, class_="rule")]
        parts += [text(left - 6, float(h) + 4, f"{v:g}", "end")] if first else []
    for v in seen if len(seen) <= 5 else marks(*across, logx):
        parts.append(text(at((v, up[0]))[0], TOP + HEIGHT + 16, f"{v:g}", "middle"))
    ends: list[float] = []
    for i, (curve, v) in enumerate(curves.items()):
        if not v:
            continue
        shade = f"{0.35 + 0.65 * (i + 1) / len(curves):.2f}"
        path = " ".join("{:.1f},{:.1f}".format(*at(q)) for q in v)
        parts.append(tag("polyline", points=path, stroke_width=2, stroke_linejoin="round", stroke_opacity=shade, class_="curve"))
        low = min(v, key=lambda q: q[1])
        for q in v:
            cx, cy = at(q)
            hint = tag("title", f"{name}, {curve}: {q[1]:.4g} at {q[0]:g}")
            parts.append(tag("circle", hint, cx=f"{cx:.1f}", cy=f"{cy:.1f}", r=5 if best and q == low else 2.5, fill_opacity=shade, class_="dot"))
        h = at(v[-1])[1] + 4
        while any(abs(h - other) < 12 for other in ends):
            h += 12
        ends.append(h)
        parts.append(text(at(v[-1])[0] + 7, h, curve))
    return parts
