"""A record's ratios as bars: an SVG that stands alone and follows the reader's light or dark scheme."""

from __future__ import annotations

from typing import Any

from ..report.charts import WIDTH, text, ticks
from ..report.html import Safe, join, tag

STYLE = """
svg { --ink: #1c1f23; --soft: #5d6570; --rule: #dfe2e6; --one: #1b62b5; --two: #c2410c; --rest: #8a929b; }
@media (prefers-color-scheme: dark) { svg { --ink: #e6e8ea; --soft: #9aa4af; --rule: #343a41; --one: #6cb0ff; --two: #ff9a5c; --rest: #77808a; } }
text { fill: var(--soft); font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
.strong { fill: var(--ink); font-weight: 600; } .rule { stroke: var(--rule); } .mark { stroke: var(--ink); }
.deltaw { fill: var(--one); } .peft { fill: var(--two); } .rest { fill: var(--rest); }
"""
LEFT, RIGHT, LINE = 170, WIDTH - 70, 24


def panel(found: dict[str, Any], under: str, top: float) -> tuple[list[Any], float]:
    """One group's bars from y = top on; returns the shapes and where they end. Bars are medians, lines are quartiles."""
    shown = [
        (name, r) for name in found["measures"] for r in found["ratios"] if r["over"] == name and r["under"] == under
    ]
    most = max([r["q3"] for _, r in shown] + [1.0])

    def at(value: float) -> float:
        return LEFT + (RIGHT - LEFT) * value / most

    parts: list[Any] = [text(0, top + 14, f"{found['title']}: ratio to {under}", class_="strong")]
    first, last = top + 26, top + 26 + LINE * len(shown)
    for v in ticks(0, most):
        parts += [
            tag("line", x1=f"{at(v):.1f}", x2=f"{at(v):.1f}", y1=f"{first:g}", y2=f"{last:g}", class_="rule"),
            text(at(v), last + 14, f"{v:g}", "middle"),
        ]
    for k, (name, r) in enumerate(shown):
        y = first + LINE * k + 3
        css = name.partition(" ")[0].rstrip(",")
        hint = tag("title", f"{name}: {r['median']:.3f}, quartiles {r['q1']:.3f} and {r['q3']:.3f}, {r['n']} rounds")
        parts += [
            text(LEFT - 8, y + 13, name, "end"),
            tag("rect", hint, x=LEFT, y=f"{y:g}", width=f"{at(r['median']) - LEFT:.1f}", height=LINE - 6, rx=2,
                class_=css if css in ("deltaw", "peft") else "rest"),
            tag("line", x1=f"{at(r['q1']):.1f}", x2=f"{at(r['q3']):.1f}", y1=f"{y + 9:g}", y2=f"{y + 9:g}", class_="mark"),
            text(at(max(r["median"], r["q3"])) + 6, y + 13, f"{r['median']:.2f}", class_="strong"),
        ]  # fmt: skip
    parts.append(
        tag(
            "line",
            x1=f"{at(1):.1f}",
            x2=f"{at(1):.1f}",
            y1=f"{first:g}",
            y2=f"{last:g}",
            class_="mark",
            stroke_dasharray="3 3",
        )
    )
    return parts, last + 30


def picture(record: dict[str, Any]) -> str | None:
    """Every group that has a common denominator (its first one); None where there is none with two bars."""
    parts: list[Any] = [tag("style", Safe(STYLE))]
    top = 0.0
    for found in record["groups"]:
        unders = [r["under"] for r in found["ratios"]]
        if unders and unders.count(unders[0]) > 1:
            shapes, top = panel(found, unders[0], top)
            parts += shapes
    if not top:
        return None
    size = {"viewBox": f"0 0 {WIDTH} {top:g}", "width": WIDTH, "height": f"{top:g}"}
    return (
        str(tag("svg", join(parts), xmlns="http://www.w3.org/2000/svg", role="img", aria_label=record["what"], **size))
        + "\n"
    )
