"""deltaw inspect: what is in an adapter's directory."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .output import AsJson, as_json, say, size, table
from .source import Dtype


def run(
    adapter: Annotated[str, typer.Argument(help="The adapter's directory, or a run's.")],
    base: Annotated[
        str | None, typer.Option("--base", help="Its base: adds the size of the weight change per site.")
    ] = None,
    against: Annotated[str | None, typer.Option(help="Another adapter of the same base: cosines and how far the spaces agree.")] = None,
    html: Annotated[str | None, typer.Option(help="Write pictures there: spectra, and norms and ranks by layer and module.")] = None,
    dtype: Dtype = "float32",
    json: AsJson = False,
) -> None:
    """Look into an adapter: method, sites, shapes, norms, files. Needs no model; with one, per site: |ΔW|, |ΔW| / |W|, singular values,
    the effective rank exp(entropy of sigma / sum sigma), the stable rank |ΔW|_F² / |ΔW|_2², intruder dimensions (of the 10 leading
    directions of W + ΔW those that W does not have), and the share of entries that stay within 1e-5 in the base's dtype."""
    from ..errors import SpecError

    if not base and (against or html):
        raise SpecError("--against and --html look at weight changes: name the base with --base")
    facts = read(adapter)
    if base:
        facts["deltas"], facts["ranks"] = deltas(adapter, base, dtype, against)
        if html:
            from ..report.weights import write

            facts["html"] = str(write(html, facts))
    if json:
        as_json(facts)
        return
    say(f"{facts['directory']}: {facts['format']} adapter, method {facts['method']}")
    if facts["sites"]:
        table(
            ["site", "kind", "shape"], [(s["name"], s["kind"], "x".join(map(str, s["shape"]))) for s in facts["sites"]]
        )
    table(
        ["tensor", "shape", "dtype", "norm"],
        [(t["name"], "x".join(map(str, t["shape"])), t["dtype"], t["norm"]) for t in facts["tensors"]],
    )
    if base:
        table(
            ["site", "rank", "|ΔW|", "|ΔW| / |W|", "effective rank", "stable rank", "intruders", "unchanged", *(["cosine", "same space"] if against else [])],
            [
                (d["site"], facts["ranks"].get(d["site"]), *(d[k] for k in ("norm", "share", "effective_rank", "stable_rank", "intruders", "unchanged")),
                 *((d.get("cosine"), d.get("similarity")) if against else ()))
                for d in facts["deltas"]
            ],
        )
    table(["file", "bytes", "sha256"], [(f["name"], f["bytes"], f["sha256"][:16]) for f in facts["files"]])
    bad = [t["name"] for t in facts["tensors"] if not t["finite"]]
    say(
        f"{facts['numbers']:,} numbers, {size(sum(f['bytes'] for f in facts['files']))}"
        + (f"; NOT FINITE: {bad}" if bad else "")
    )
    for name in ("peft", "versions", "base", "unknown"):
        if facts.get(name):
            say(f"{name}: {facts[name]}")


def read(adapter: str) -> dict[str, Any]:
    import torch

    from .. import files
    from ..files.disk import file_hash
    from ..spec import to_config
    from .source import the_adapter

    path = the_adapter(adapter)
    saved = files.read(path)
    card, plan = saved.card or {}, saved.plan
    tensors = [
        {
            "name": name,
            "shape": list(t.shape),
            "dtype": str(t.dtype).removeprefix("torch."),
            "norm": float(torch.linalg.vector_norm(t.double())),
            "finite": bool(torch.isfinite(t).all()),
        }
        for name, t in sorted(saved.tensors.items())
    ]
    return {
        "directory": str(path),
        "format": saved.format,
        "method": to_config(plan.method) if plan else (saved.config or {}).get("peft_type"),
        "plan": plan.to_dict() if plan else saved.config,
        "sites": card.get("sites", []),
        "tensors": tensors,
        "numbers": sum(t.numel() for t in saved.tensors.values()),
        "files": [
            {"name": f.name, "bytes": f.stat().st_size, "sha256": file_hash(f)}
            for f in sorted(path.iterdir())
            if f.is_file()
        ],
        **{k: card.get(k) for k in ("peft", "versions", "base", "seeded")},
        "unknown": saved.unknown,
    }


def deltas(adapter: str, base: str, dtype: str, against: str | None = None) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """What each site's change is like (None where it is no weight change), and the live ranks."""
    import torch

    from .. import load, measures
    from ..convert import site_delta
    from ..errors import NotLinear
    from ..study.checks.rl_subnetwork import update_sparsity
    from .source import open_source, the_adapter

    out: list[dict[str, Any]] = []
    model, _, adapted = open_source(str(the_adapter(adapter)), base, dtype, codes=False)
    words = ("norm", "share", "singular_values", "effective_rank", "stable_rank", "intruders", "unchanged")
    spaces: dict[str, Any] = {}
    with torch.no_grad():
        for a in adapted.assignments:
            try:
                op = site_delta(adapted, a)
            except NotLinear:
                out.append({"site": a.site.name, **dict.fromkeys(words)})
                continue
            change, old = op.dense(), a.site.leaf().op.dense()
            U, S, V = measures.svd(op)
            spaces[a.site.name] = (U[:, S > 1e-9 * S[:1]], (U * S, V))
            whole = float(torch.linalg.vector_norm(old.double()))
            norm = float(torch.linalg.vector_norm(S))
            new = (old.to(change.dtype) + change).to(old.dtype)
            out.append({
                "site": a.site.name,
                "norm": norm,
                "share": norm / whole if whole else None,
                "singular_values": [float(v) for v in S[:64]],
                "effective_rank": measures.effective_rank(S),
                "stable_rank": measures.stable_rank(S),
                "intruders": measures.intruders(old, change) if norm and max(old.shape) <= 16384 else 0,
                "unchanged": update_sparsity({"": old}, {"": new}),
            })  # fmt: skip
        ranks = adapted.ranks()
        if against:
            adapted.detach()
            other = load(model, the_adapter(against))
            for a in other.assignments:
                if a.site.name in spaces:
                    U, S, V = measures.svd(site_delta(other, a))
                    space, pair = spaces[a.site.name]
                    row = next(d for d in out if d["site"] == a.site.name)
                    row["cosine"] = measures.cosine(pair, (U * S, V))
                    row["similarity"] = measures.similarity(space, U[:, S > 1e-9 * S[:1]])
    return out, ranks
