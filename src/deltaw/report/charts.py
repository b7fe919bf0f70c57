"""Inline SVG in the page's own colours: bars, lines, a grid of cells. Sizes are those of the viewBox; the page scales them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .html import Safe, tag

WIDTH = 760
CLASSES = ("one", "two")
Point = tuple[float, float]


def figure(height: float, label: str, caption: str, *parts: Any) -> Safe:
    svg = tag("svg", *parts, viewBox=f"0 0 {WIDTH} {height:g}", role="img", aria_label=label)
    return tag("figure", svg, tag("figcaption", caption) if caption else None)


def text(x: float, y: float, words: Any, anchor: str = "start", class_: str | None = None) -> Safe:
    return tag("text", words, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, class_=class_)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from low to high, about `count` of them."""
    raw = max(high - low, 1e-12) / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * k for k in (1, 2, 5, 10) if unit * k >= raw * (1 - 1e-9))
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def bars(values: Mapping[str, float], caption: str = "") -> Safe:
    """Shares between 0 and 1 as horizontal bars with their per cent."""
    left, right, parts = 90, WIDTH - 70, []
    for i, (name, share) in enumerate(values.items()):
        y, size = 8 + 34 * i, max(0.0, min(share, 1.0)) * (right - left)
        parts += [
            text(left - 10, y + 17, name, "end"),
            tag("rect", x=left, y=y, width=right - left, height=24, rx=3, class_="track"),
            tag("rect", x=left, y=y, width=f"{size:.1f}", height=24, rx=3, class_="fill-one"),
            text(right + 8, y + 17, f"{100 * share:.1f} %", class_="strong"),
        ]
    return figure(8 + 34 * len(values), "; ".join(f"{k} {100 * v:.1f} %" for k, v in values.items()), caption, *parts)


def lines(series: Mapping[str, Sequence[Point]], x: str = "step", y: str = "loss", caption: str = "") -> Safe:
    """Up to two series over one pair of axes from zero; a series of one point is a mark. Values that are not finite are gaps."""
    kept = {k: [p for p in v if math.isfinite(p[0]) and math.isfinite(p[1])] for k, v in series.items()}
    points = [p for v in kept.values() for p in v]
    if not points:
        return tag("p", "Nothing was logged.", class_="soft")
    left, right, top, base = 52, WIDTH - 16, 26, 246
    wide, low, high = max(p[0] for p in points) or 1.0, min(0.0, *(p[1] for p in points)), max(p[1] for p in points)
    high = high if high > low else low + 1.0

    def at(p: Point) -> tuple[str, str]:
        return f"{left + (right - left) * p[0] / wide:.1f}", f"{base - (base - top) * (p[1] - low) / (high - low):.1f}"

    parts = []
    for v in ticks(low, high):
        h = at((0, v))[1]
        parts += [
            tag("line", x1=left, x2=right, y1=h, y2=h, class_="rule"),
            text(left - 8, float(h) + 4, f"{v:g}", "end"),
        ]
    parts += [text(float(at((v, 0))[0]), base + 18, f"{v:g}", "middle") for v in ticks(0, wide, 8)]
    parts += [text(right, base + 36, x, "end"), text(8, 14, y)]
    place: float = right
    for (name, found), css in reversed(list(zip(kept.items(), CLASSES))):
        if len(found) > 1:
            path = " ".join(",".join(at(p)) for p in found)
            parts.append(tag("polyline", points=path, fill="none", stroke_width=2, stroke_linejoin="round", class_=css))
        for p in found:
            cx, cy = at(p)
            hint = tag("title", f"{name}: {y} {p[1]:.4g} at {x} {p[0]:g}")
            parts.append(tag("circle", hint, cx=cx, cy=cy, r=2.5 if len(found) > 1 else 5, class_=f"fill-{css}"))
        if found:
            parts += [
                text(place, 14, name, "end"),
                tag("circle", cx=place - 7.0 * len(name) - 8, cy=10, r=4, class_=f"fill-{css}"),
            ]
            place -= 7.0 * len(name) + 34
    return figure(base + 42, f"{y} over {x}", caption, *parts)


def heat(grid: Mapping[str, Mapping[int, tuple[float, str]]], caption: str = "") -> Safe:
    """row name -> column number -> (value >= 0, hint): the stronger the colour, the larger the value."""
    if not any(grid.values()):
        return tag("p", "Nothing to show.", class_="soft")
    top = max(v for row in grid.values() for v, _ in row.values()) or 1.0
    columns = 1 + max(k for row in grid.values() for k in row)
    left = 20 + 6.6 * max(map(len, grid))
    size = min(24.0, (WIDTH - left - 8) / columns)
    parts = []
    for i, (name, row) in enumerate(grid.items()):
        y = 4 + i * 22
        parts.append(text(left - 8, y + 15, name, "end"))
        for k, (value, hint) in row.items():
            cell = {"x": f"{left + k * size:.1f}", "y": y, "width": f"{size - 2:.1f}", "height": 20, "rx": 2}
            parts.append(tag("rect", **cell, class_="track"))
            share = value / top if math.isfinite(value) else 0.0
            parts.append(tag("rect", tag("title", hint), **cell, fill_opacity=f"{share:.3f}", class_="fill-one"))
    base = 4 + 22 * len(grid)
    shown = [int(t) for t in ticks(0, columns - 1, 10) if t == int(t)] if columns > 1 else []
    parts += [text(left + (t + 0.5) * size - 1, base + 14, t, "middle") for t in shown]
    return figure(base + 20, "grid of values", caption, *parts)
