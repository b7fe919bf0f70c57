"""The catalogue: what is true of every method, derived from its expression and from which oracles exist.

Nothing here is written by hand: `deltaw methods`, the README's table and the documentation are printed from it. The
facts come from attaching the method, at its defaults, to two layers on the meta device (shapes without data). What is
no structure (update rules, initialisations, rules between steps) has rows of its own: `dynamics`.
"""

from __future__ import annotations

import re
from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from . import attach, preview
from .convert import BiasChanged, site_delta, site_layer
from .errors import DeltawError, NotLinear, SpecError, nearest
from .ops import factors, watch_dense
from .plan import Plan
from .spec import METHODS, Method, to_config

SAMPLE = (1024, 768)  # out, in
"""The layer that counts and ranks are given for."""


class _Sample(nn.Module):
    def __init__(self, m: int, n: int, norm: bool = False):
        super().__init__()
        self.blocks = nn.ModuleList([nn.LayerNorm(n) if norm else nn.Linear(n, m)])
        self.config = SimpleNamespace(hidden_size=m)

    def token_ids(self, x: torch.Tensor, **kw: Any) -> torch.Tensor:
        return torch.arange(x.shape[-2], device=x.device).expand(x.shape[:-1])

    def forward(self, x: torch.Tensor, **kw: Any) -> Any:
        y = self.blocks[0](x)
        return SimpleNamespace(logits=y, hidden_states=(x,)) if kw.get("output_hidden_states") else y


TARGETS: dict[str, Any] = {
    "weight": "all-linear", "stream": "all-blocks", "parallel": "all-blocks", "block": "all-blocks",
    "prefix": "all-blocks", "attention": "all-blocks", "module": ["blocks.0"], "norm": "all-norms",
}  # fmt: skip


def _model(method: Method, m: int, n: int) -> nn.Module:
    """Shapes without data: one layer; for a prompt a language model with n numbers a token, and m a place in its cache."""
    from .testing.tiny import Around, Attention, Reader, Tiny

    with torch.device("meta"):
        if method.sites == "block":
            return Tiny(n, m)
        if method.sites == "attention":
            return Around(Attention(n, m // 4))
        return Reader(n, 2, m // 4) if method.sites == "prefix" else _Sample(m, n, method.sites == "norm")


def _attached(method: Method, m: int, n: int) -> tuple[nn.Module, Any]:
    model = _model(method, m, n)
    return model, attach(model, Plan(method, targets=TARGETS[method.sites]))


def facts_of(method: Method, shape: tuple[int, int] = SAMPLE) -> dict[str, Any]:
    """mergeable, exact_lora_rank, needs_dense_base, trainable at a layer of that shape; from the algebra alone."""
    return dict(_facts(method, shape))


@lru_cache(maxsize=4096)
def _facts(method: Method, shape: tuple[int, int]) -> dict[str, Any]:
    model, adapted = _attached(method, *shape)
    site = adapted.assignments[0].site
    try:
        site.merged(site_layer(adapted, adapted.assignments[0]))
        mergeable = True
    except NotLinear:
        mergeable = False
    rank = None
    if mergeable and site.kind == "linear":
        try:
            pair = factors(site_delta(adapted, adapted.assignments[0]))
            rank = None if pair is None else pair[0].shape[1]
        except BiasChanged:
            rank = None
    x = torch.empty(2, shape[1], device="meta")
    model(x)  # what is needed once and then kept, such as row norms, is needed by no forward
    with watch_dense() as asked:
        model(x)
    trainable = sum(p.numel() for p in adapted.trainable().values())
    return {
        "mergeable": mergeable, "exact_lora_rank": rank, "needs_dense_base": bool(asked), "trainable": trainable
    }  # fmt: skip


def formula(method: Method) -> str | None:
    """The trainable count of one layer as a polynomial in m (out) and n (in), at this method's configuration; None where
    it is no such polynomial (factorised sizes)."""
    terms = {"m n": lambda m, n: m * n, "m": lambda m, n: m, "n": lambda m, n: n, "": lambda m, n: 1}
    shapes = [(768, 768), (1536, 768), (768, 2304), (1536, 1536), (3072, 768), (2304, 3072), (1920, 1152)]
    try:
        counts = [preview_count(method, m, n) for m, n in shapes]
    except DeltawError:
        return None
    A = torch.tensor([[f(m, n) for f in terms.values()] for m, n in shapes], dtype=torch.float64)
    y = torch.tensor(counts, dtype=torch.float64)
    found = torch.linalg.lstsq(A[:4], y[:4, None]).solution.squeeze(1)
    whole = found.round(decimals=6)
    if float((A @ whole - y).abs().max()) > 0.01:
        return None
    parts = []
    for c, word in zip(whole.tolist(), terms):
        if c:
            number = "" if c == 1 and word else f"{c:g}"
            parts.append(f"{number} {word}".strip())
    return " + ".join(parts).replace("+ -", "- ") or "0"


def preview_count(method: Method, m: int, n: int) -> int:
    """Trained numbers at one layer m x n, from the declarations."""
    model = _model(method, m, n)
    return preview(model, Plan(method, targets=TARGETS[method.sites])).trainable


def entry(cls: type[Method]) -> dict[str, Any]:
    """Everything the catalogue says of one method."""
    from .testing import is_opaque, status_of
    from .testing.oracles import declared, oracle

    method, oracles = cls(), declared(cls.key)
    facts = facts_of(method)
    return {
        "key": cls.key,
        "class": cls.__name__,
        "axis": cls.axis,
        "paper": cls.paper,
        "status": status_of(oracles, is_opaque(cls)),
        "mergeable": facts["mergeable"],
        "exact_lora_rank": facts["exact_lora_rank"],
        "needs_dense_base": facts["needs_dense_base"],
        "identity_at_start": method.start in ("identity", "rounding"),
        "start": method.start,
        "sites": method.sites,
        "in_peft": bool(getattr(oracle(cls.key), "IN_PEFT", "peft" in oracles)),
        "oracles": oracles,
        "sample_shape": list(SAMPLE),
        "trainable": facts["trainable"],
        "formula": formula(method),
        "fields": {k: v for k, v in to_config(method).items() if k != "key"},
        "claims": list(cls.claims),  # type: ignore[attr-defined]
        "summary": (cls.__doc__ or "").strip().splitlines()[0],
    }


def catalogue() -> list[dict[str, Any]]:
    """All methods, by key."""
    return [entry(METHODS[key]) for key in METHODS]


def markdown(rows: list[dict[str, Any]] | None = None) -> str:
    """The README's table."""
    yes = {True: "yes", False: ""}
    lines = [
        "| key | class | axis | paper | status | trained per layer | merges | exact LoRA rank | base as matrix | identity at start | in PEFT |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in catalogue() if rows is None else rows:
        count = r["formula"] or f"{r['trainable']:,} at {r['sample_shape'][0]} x {r['sample_shape'][1]}"
        cells = [
            f"`{r['key']}`", f"`{r['class']}`", r["axis"], r["paper"], r["status"], count, yes[r["mergeable"]],
            "" if r["exact_lora_rank"] is None else str(r["exact_lora_rank"]), yes[r["needs_dense_base"]],
            yes[r["identity_at_start"]], yes[r["in_peft"]],
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


# ---- what is no structure


def axes() -> list[str]:
    """Every axis: those of structures, and "update", "init", "rules", "rank", "compress"."""
    from .testing import AXES

    return [*sorted({METHODS[k].axis for k in METHODS}), *AXES]


def named(word: str) -> list[tuple[str, str]]:
    """(axis, key) of all that a word names: a key, in whatever axes it is, or AXIS/KEY for the one in that axis."""
    from .testing import AXES

    everything = [(METHODS[k].axis, k) for k in METHODS] + [(axis, k) for axis, table in AXES.items() for k in table]
    axis, _, key = word.rpartition("/")
    found = [pair for pair in everything if pair[1] == key and axis in ("", pair[0])]
    if not found:
        keys = [k for _, k in everything] if axis not in axes() else [f"{a}/{k}" for a, k in everything if a == axis]
        raise SpecError(f"no method '{word}'{nearest(word, keys)}; `deltaw methods` lists them")
    return found


def defaults(cls: Any) -> dict[str, Any]:
    """{field: what it is by default}, as plain data; what has to be given is left out."""
    found = {}
    for f in fields(cls):
        value = f.default_factory() if f.default_factory is not MISSING else f.default
        if value is not MISSING:
            found[f.name] = to_config(value) if is_dataclass(value) else value
    return found


def entry_of(axis: str, key: str) -> dict[str, Any]:
    """Everything the catalogue says of an update rule, an initialisation or a rule."""
    from .testing import AXES, oracles_of, status_of

    cls, oracles = AXES[axis][key], oracles_of(axis, key)
    facts: dict[str, Any] = {}
    if axis == "update":
        if getattr(cls, "pairs", False):
            facts["moves"] = "A and B of a site together"
        elif hasattr(cls, "floats"):
            facts["state"] = cls().floats(*SAMPLE)
    if hasattr(cls, "needs"):
        facts |= {"needs": sorted(cls.needs), "shifts": getattr(cls, "shifts", False)}
    return {
        "key": key, "class": cls.__name__, "axis": axis, "paper": cls.paper, "status": status_of(oracles, False),
        "oracles": oracles, **facts, "fields": defaults(cls), "summary": sentence(cls.__doc__ or ""),
    }  # fmt: skip


def sentence(doc: str) -> str:
    """The first sentence."""
    words = " ".join(doc.strip().split("\n\n")[0].split())
    return re.split(r"(?<=\.)\s+(?=[A-Z])", words, maxsplit=1)[0]


def dynamics(only: str | None = None) -> list[dict[str, Any]]:
    """All update rules, initialisations and rules (or those of one axis), by axis and key."""
    from .testing import AXES

    return [entry_of(axis, key) for axis, table in AXES.items() if only in (None, axis) for key in table]


def notes(row: dict[str, Any]) -> str:
    """What a row of `dynamics` says besides its name, in a few words."""
    words = []
    if "moves" in row:
        words.append(row["moves"])
    if "state" in row:
        words.append(f"{row['state']:,} numbers of state at {SAMPLE[0]} x {SAMPLE[1]}")
    if row.get("needs"):
        words.append(f"needs {', '.join(row['needs'])}")
    if row.get("shifts"):
        words.append("keeps an offset")
    return "; ".join(words)


def dynamics_markdown(rows: list[dict[str, Any]] | None = None) -> str:
    """The README's second table."""
    lines = ["| key | class | axis | paper | status | | summary |", "|---|---|---|---|---|---|---|"]
    for r in dynamics() if rows is None else rows:
        cells = [f"`{r['key']}`", f"`{r['class']}`", r["axis"], r["paper"], r["status"], notes(r), r["summary"]]
        lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return "\n".join(lines) + "\n"


__all__ = [
    "SAMPLE", "axes", "catalogue", "dynamics", "dynamics_markdown", "entry", "entry_of", "facts_of", "formula", "markdown", "named",
    "notes",
]  # fmt: skip
