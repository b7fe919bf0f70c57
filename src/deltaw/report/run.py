"""The page of a training run, from the files it left: what was learned, where the weights changed, what rules and routers did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .charts import heat, lines
from .html import Safe, document, section, table, tag, tiles
from .html import write as write_page
from .weights import by_place

SHOWN = 200  # lines of what rules did


def series(history: list[dict[str, Any]], word: str) -> list[tuple[float, float]]:
    return [(float(h["step"]), float(h[word])) for h in history if isinstance(h.get(word), (int, float))]


def routes(sites: dict[str, Any]) -> list[Safe]:
    """Shares by site and expert as a heat map, and how even they are as a table."""
    grid = {
        site: {k: (share, f"{site}, {k}: {100 * share:.1f} % of the tokens") for k, share in enumerate(found["share"])}
        for site, found in sites.items()
    }
    columns = ("site", "entropy (1: even)", "largest share over the mean", "never chosen", "tokens")
    rows = [(site, f"{f['entropy']:.3f}", f"{f['imbalance']:.2f}", f["dead"], f["tokens"]) for site, f in sites.items()]
    return [heat(grid, "share of the tokens that chose an expert (column) at a site (row)"), table(columns, rows)]


def write(directory: str | Path) -> Path:
    """DIRECTORY/report.html from DIRECTORY/run.json and metrics.jsonl; needs no network. Returns its path."""
    home = Path(directory)
    run = json.loads((home / "run.json").read_text(encoding="utf-8"))
    history = [json.loads(line) for line in (home / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    word = "reward" if any("reward" in h for h in history) else "loss"
    curves = {"training": series(history, word)} | ({"held out": seen} if (seen := series(history, "eval_loss")) else {})
    facts, last = run["adapter"], run["metrics"]
    numbers = {k: f"{last[k]:.4g}" for k in ("reward", "loss", "eval_loss") if isinstance(last.get(k), (int, float))}
    counts = {"trained numbers": f"{facts['trainable']:,}", "tokens a second": f"{run['tokens_per_second']:,}", "seconds": f"{run['train_seconds']:,.0f}"}
    ranks, told = run["ranks"], [h for h in history if "rule" in h]
    parts = [tiles({**numbers, **counts}), section(word.capitalize(), lines(curves, y=word))]
    if run["norms"]:
        size = {site: n["relative"] for site, n in run["norms"].items()}
        parts.append(section("Where the weights changed", heat(by_place(size), "|dW| / |W| by module and layer; hover for the numbers")))
    if len(set(ranks.values())) > 1 or told:
        picture = heat(by_place({site: float(r) for site, r in ranks.items()}), "live terms a site; hover for the numbers")
        parts.append(section("Ranks", picture, tag("p", f"{sum(ranks.values()):,} terms at {len(ranks)} sites.")))
    if run["routing"]:
        parts.append(section("What the routers choose", *routes(run["routing"])))
    if told:
        rows = [(h["step"], h["rule"]) for h in told[-SHOWN:]]
        parts.append(section("What the rules did", table(("step", ""), rows)))
    if warnings := [h for h in history if "warning" in h]:
        parts.append(section("Warnings", table(("step", ""), [(h["step"], h["warning"]) for h in warnings])))
    title = f"{facts['method']} at {facts['sites']} sites"
    return write_page(home / "report.html", document(title, tag("h1", title), *parts))
