"""One picture per run: loss (or reward) over steps, and how far every site has moved. Plain SVG, no plotting library."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from html import escape
from typing import Any

import torch

from ..convert import BiasChanged, site_layer
from ..errors import NotLinear
from ..ops import Affine, delta, factors, row_norm

WIDTH, LEFT, HEIGHT, CELL = 760, 170, 220, 18
STYLE = "font:11px system-ui,sans-serif;fill:#444"


@torch.no_grad()
def site_norms(adapted: Any) -> dict[str, dict[str, float]]:
    """Site -> {"delta": |ΔW|_F, "relative": |ΔW|_F / |W|_F}. From the factors where there are any, so that no m x n
    product is built; sites whose change is no weight (hidden states, gates, whole modules) are left out."""
    out = {}
    for a in adapted.assignments:
        if a.site.kind in ("stream", "parallel", "block", "prefix", "attention", "module"):
            continue
        try:
            L = site_layer(adapted, a)
        except (NotLinear, BiasChanged):
            continue
        if not isinstance(L, Affine):
            continue
        W = a.site.leaf().op
        op = delta(L.op, W)
        pair = factors(op)
        if pair is not None:
            B, A = (t.double() for t in pair)
            size = float(((B.mT @ B) * (A @ A.mT)).sum().clamp_min(0).sqrt())
        else:
            size = float(row_norm(op).norm())
        whole = float(row_norm(W).norm())
        out[a.site.name] = {"delta": size, "relative": size / whole if whole > 0 else 0.0}
    return out


def picture(history: Iterable[dict[str, Any]], norms: dict[str, dict[str, float]], title: str = "") -> str:
    """The SVG text. history: lines of metrics.jsonl; norms: from `site_norms`."""
    lines = list(history)
    what = "reward" if any(_number(r.get("reward")) for r in lines) else "loss"  # under GRPO the loss says nothing
    train = [(r["step"], r[what]) for r in lines if _number(r.get(what))]
    held = [(r["step"], r["eval_loss"]) for r in lines if _number(r.get("eval_loss"))]
    body = [f'<text x="20" y="22" style="font:bold 14px system-ui,sans-serif">{escape(title)}</text>']
    body += _loss(train, held, 40, what)
    cells, bottom = _heat(norms, 40 + HEIGHT + 50)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 20}" width="{WIDTH}" height="{bottom + 20}">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(body + cells)}</svg>\n'
    )


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" style="{STYLE}">{escape(text)}</text>'


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from low to high."""
    span = max(high - low, 1e-12)
    raw = span / count
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * k for k in (1, 2, 5, 10) if unit * k >= raw)
    first = math.ceil(low / step)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _loss(train: list[tuple[float, float]], held: list[tuple[float, float]], top: int, what: str) -> list[str]:
    points = train + held
    if not points:
        return [_text(20, top + 20, f"no {what} was logged")]
    x1, y1 = max(x for x, _ in points), max(y for _, y in points)
    y0 = min(0.0, min(y for _, y in points))
    y1 = y1 if y1 > y0 else y0 + 1.0
    left, right, base = 60, WIDTH - 20, top + HEIGHT

    def at(p: tuple[float, float]) -> str:
        return f"{left + (right - left) * p[0] / max(x1, 1):.1f},{base - HEIGHT * (p[1] - y0) / (y1 - y0):.1f}"

    out = []
    for y in ticks(y0, y1):
        h = base - HEIGHT * (y - y0) / (y1 - y0)
        out.append(
            f'<line x1="{left}" x2="{right}" y1="{h:.1f}" y2="{h:.1f}" stroke="#ddd"/>'
            + _text(left - 6, h + 4, f"{y:g}", "end")
        )
    for x in ticks(0, x1, 8):
        out.append(_text(left + (right - left) * x / max(x1, 1), base + 16, f"{x:g}", "middle"))
    out.append(_text(right, base + 32, "step", "end") + _text(20, top - 4, what))
    for series, color, name in ((train, "#1f77b4", "training"), (held, "#d62728", "held out")):
        if series:
            path = " ".join(map(at, series))
            out.append(
                f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.6"><title>{name}</title></polyline>'
            )
            out += [
                f'<circle cx="{p.split(",")[0]}" cy="{p.split(",")[1]}" r="2.2" fill="{color}"/>' for p in path.split()
            ]
            out.append(
                f'<text x="{right - (10 if series is held else 80)}" y="{top + 4}" text-anchor="end" style="font:11px system-ui;fill:{color}">{name}</text>'
            )
    return out


def _heat(norms: dict[str, dict[str, float]], top: int) -> tuple[list[str], int]:
    """Kinds of site down, layers across, darker = moved further relative to its weight."""
    if not norms:
        return [_text(20, top, "no site has a weight change to show")], top + 10
    grid: dict[str, dict[int, tuple[str, float, float]]] = {}
    for name, n in norms.items():
        found = re.search(r"\.(\d+)\.", f".{name}.")
        words = re.sub(r"\.\d+(?=\.)", "", f".{name}").rsplit(".", 2)[-2:]
        grid.setdefault(".".join(w for w in words if w), {})[int(found.group(1)) if found else 0] = (
            name,
            n["relative"],
            n["delta"],
        )
    highest = max((n["relative"] for n in norms.values() if math.isfinite(n["relative"])), default=0.0) or 1.0
    layers = max(k for row in grid.values() for k in row) + 1
    size = min(CELL, (WIDTH - LEFT - 20) / layers)
    out = [_text(20, top, f"|ΔW| / |W| by layer and module: white 0, dark {highest:.3g}")]
    for i, (kind, row) in enumerate(grid.items()):
        y = top + 12 + i * CELL
        out.append(_text(LEFT - 8, y + 13, kind, "end"))
        for layer, (name, relative, size_of) in row.items():
            share = relative / highest
            rgb = [round(255 - k * share) for k in (225, 150, 95)] if math.isfinite(share) else [0, 0, 0]
            fill = f"rgb({rgb[0]},{rgb[1]},{rgb[2]})"
            out.append(
                f'<rect x="{LEFT + layer * size:.1f}" y="{y}" width="{size - 1:.1f}" height="{CELL - 1}" fill="{fill}" '
                f'stroke="#eee"><title>{escape(name)}: |ΔW| = {size_of:.4g}, {100 * relative:.3g} % of |W|</title></rect>'
            )
    bottom = top + 12 + len(grid) * CELL
    for at in ticks(0, layers - 1, 8) if layers > 1 else []:
        if at == int(at):
            out.append(_text(LEFT + (at + 0.5) * size, bottom + 13, f"{at:g}", "middle"))
    return out, bottom + 20
