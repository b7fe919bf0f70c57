"""Pictures of a weight change: spectra, and norms and ranks by layer and module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..sites.find import layer_index
from .charts import heat, lines
from .html import document, tag
from .html import write as write_page


def by_place(values: dict[str, float]) -> dict[str, dict[int, tuple[float, str]]]:
    """kind of module -> layer -> (value, hint); sites outside the layers stand in column 0."""
    out: dict[str, dict[int, tuple[float, str]]] = {}
    for site, value in values.items():
        out.setdefault(site.rpartition(".")[2], {})[layer_index(site) or 0] = (value, f"{site}: {value:.4g}")
    return out


def write(file: str | Path, facts: dict[str, Any]) -> Path:
    """A page on its own (no network): what `deltaw inspect` has found."""
    title = f"Weight change of {facts['directory']}"
    found = [d for d in facts["deltas"] if d["norm"] is not None]
    largest = sorted(found, key=lambda d: -d["norm"])[:6]
    spectra = {d["site"]: [(float(k + 1), v) for k, v in enumerate(d["singular_values"])] for d in largest}
    parts = [
        tag("h2", "Size of the change"), heat(by_place({d["site"]: d["norm"] for d in found}), "|dW|_F by module and layer; hover for the numbers"),
        tag("h2", "Effective rank"), heat(by_place({d["site"]: d["effective_rank"] for d in found}), "exp of the entropy of the singular values"),
        tag("h2", "Intruder dimensions"), heat(by_place({d["site"]: float(d["intruders"]) for d in found}), "of the ten leading directions of W + dW, those that W does not have"),
        tag("h2", "Spectra"), lines(spectra, x="direction", y="singular value", caption="the sites that changed most"),
    ]  # fmt: skip
    if facts["ranks"] and len(set(facts["ranks"].values())) > 1:
        parts += [tag("h2", "Ranks"), heat(by_place({s: float(r) for s, r in facts["ranks"].items()}), "live terms a site")]
    return write_page(file, document(title, tag("h1", title), *parts))
