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
    dtype: Dtype = "float32",
    json: AsJson = False,
) -> None:
    """Look into an adapter: method, sites, shapes, norms, files. Needs no model; with one, also |ΔW|, |ΔW| / |W|, the stable
    rank |ΔW|_F² / |ΔW|_2², and the share of entries that stay within 1e-5 in the base's dtype."""
    facts = read(adapter)
    if base:
        facts["deltas"] = deltas(adapter, base, dtype)
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
            ["site", "|ΔW|", "|ΔW| / |W|", "stable rank", "unchanged"],
            [(d["site"], d["norm"], d["share"], d["stable_rank"], d["unchanged"]) for d in facts["deltas"]],
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


def deltas(adapter: str, base: str, dtype: str) -> list[dict[str, Any]]:
    """|ΔW|, its share of |W|, its stable rank and the share of entries that it leaves alone, per site; where the change is no
    weight change, None."""
    import torch

    from ..convert import site_delta
    from ..errors import NotLinear
    from ..study.checks.rl_subnetwork import update_sparsity
    from ..study.checks.stable_rank import stable_rank
    from .source import open_source, the_adapter

    out: list[dict[str, Any]] = []
    _, _, adapted = open_source(str(the_adapter(adapter)), base, dtype)
    with torch.no_grad():
        for a in adapted.assignments:
            try:
                op = site_delta(adapted, a)
            except NotLinear:
                out.append({"site": a.site.name, **dict.fromkeys(("norm", "share", "stable_rank", "unchanged"))})
                continue
            change, old = op.dense(), a.site.leaf().op.dense()
            norm, whole = (float(torch.linalg.vector_norm(t.double())) for t in (change, old))
            new = (old.to(change.dtype) + change).to(old.dtype)
            out.append({
                "site": a.site.name,
                "norm": norm,
                "share": norm / whole if whole else None,
                "stable_rank": stable_rank(op, power_iters=30),
                "unchanged": update_sparsity({"": old}, {"": new}),
            })  # fmt: skip
    return out
