"""Elements and the page. `tag` escapes whatever is not made by `tag`, so that forgetting to escape is not possible."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

# Closed by themselves; an SVG shape left open would swallow the next one.
EMPTY = {"meta", "br", "rect", "line", "circle", "polyline"}

CSS = """
:root { color-scheme: light dark; --back: #fcfcfb; --card: #ffffff; --ink: #1c1f23; --soft: #5d6570; --rule: #dfe2e6;
  --one: #1b62b5; --two: #c2410c; --good: #15803d; --bad: #b91c1c; }
@media (prefers-color-scheme: dark) { :root { --back: #14171a; --card: #1c2024; --ink: #e6e8ea; --soft: #9aa4af;
  --rule: #343a41; --one: #6cb0ff; --two: #ff9a5c; --good: #4ade80; --bad: #f87171; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 60rem; background: var(--back); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p { margin: .4rem 0; } figure + p, .wide + p { margin-top: 1rem; } .soft, figcaption { color: var(--soft); } figcaption { font-size: .85rem; margin-top: .3rem; }
figure { margin: 0; } svg { display: block; width: 100%; height: auto; }
.tiles { display: grid; grid-template-columns: repeat(3, 1fr); gap: .75rem; margin: 1.4rem 0; }
.tile, figure, .wide { background: var(--card); border: 1px solid var(--rule); border-radius: .5rem; padding: .8rem 1rem; }
.tile b { display: block; font-size: 1.5rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .85rem; }
.wide { overflow-x: auto; padding: .2rem 1rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .45rem .9rem .45rem 0; border-bottom: 1px solid var(--rule); overflow-wrap: anywhere; }
th { color: var(--soft); font-weight: 500; } tr:last-child > * { border-bottom: 0; } .facts th { width: 38%; }
pre { background: var(--card); border: 1px solid var(--rule); border-radius: .5rem; padding: .8rem 1rem; overflow-x: auto; font-size: .82rem;
  line-height: 1.45; white-space: pre-wrap; overflow-wrap: anywhere; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.good { color: var(--good); } .bad { color: var(--bad); } .badge { border: 1px solid currentColor; border-radius: 1rem; padding: .05rem .6rem; font-size: .8rem; }
svg text { fill: var(--soft); font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
svg .strong { fill: var(--ink); font-weight: 600; } svg .rule { stroke: var(--rule); } svg .track { fill: var(--rule); opacity: .5; }
svg .one { stroke: var(--one); } svg .two { stroke: var(--two); } svg .fill-one { fill: var(--one); } svg .fill-two { fill: var(--two); }
@media (max-width: 34rem) { .tiles { grid-template-columns: 1fr 1fr; } body { padding: 1rem .75rem; } }
@media print { body { max-width: none; padding: 0; } }
"""


class Safe(str):
    """HTML that is finished: it is not escaped again."""


def tag(name: str, /, *inside: Any, **attributes: Any) -> Safe:
    """<name ...>inside</name>. Children and attribute values are escaped unless they are `Safe`; None is left out.
    Attribute names: a trailing _ is dropped (class_), other _ become - (stroke_width)."""
    words = [
        f' {k.rstrip("_").replace("_", "-")}="{escape(str(v), quote=True)}"'
        for k, v in attributes.items()
        if v is not None
    ]
    head = f"<{name}{''.join(words)}"
    return Safe(f"{head}/>" if name in EMPTY and not inside else f"{head}>{join(inside)}</{name}>")


def join(parts: Iterable[Any]) -> Safe:
    return Safe("".join(p if isinstance(p, Safe) else escape(str(p)) for p in parts if p is not None))


def document(title: str, *body: Any) -> Safe:
    """The page. Its policy forbids every load, so it cannot reach outside even where text slipped through."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content="default-src 'none'; style-src 'unsafe-inline'"),
        tag("title", title),
        tag("style", Safe(CSS)),
    )
    return Safe("<!doctype html>\n" + tag("html", head, tag("body", *body), lang="en") + "\n")


def section(title: str, *inside: Any) -> Safe:
    return tag("section", tag("h2", title), *inside)


def tiles(values: Mapping[str, Any]) -> Safe:
    """Large numbers with a small label under each."""
    return tag(
        "div", *(tag("div", tag("b", v), tag("span", k), class_="tile") for k, v in values.items()), class_="tiles"
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Safe:
    head = tag("tr", *(tag("th", c) for c in columns))
    body = [tag("tr", *(tag("td", c) for c in row)) for row in rows]
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body)), class_="wide")


def facts(values: Mapping[str, Any]) -> Safe:
    """Name and value, one pair a line."""
    rows = [tag("tr", tag("th", k, scope="row"), tag("td", v)) for k, v in values.items()]
    return tag("div", tag("table", tag("tbody", *rows), class_="facts"), class_="wide")


def badge(text: str, good: bool) -> Safe:
    return tag("span", text, class_=f"badge {'good' if good else 'bad'}")


def write(path: str | os.PathLike[str], page: Safe) -> Path:
    """Write the page, whole or not at all."""
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    part.write_text(page, encoding="utf-8")
    os.replace(part, path)
    return path
