"""deltaw compress: a smaller model, with what that costs."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from .output import AsJson, as_json, say, table
from .source import MODEL_HELP, Dtype


def run(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    data: Annotated[Path, typer.Option(help="A text file: its first three quarters calibrate, its last quarter is scored.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where the model goes: a new directory.")] = None,
    method: Annotated[str, typer.Option(help="svd, asvd, svd_llm, afm_ctr, shears (`deltaw methods --axis compress`).")] = "svd_llm",
    ratio: Annotated[float, typer.Option(help="The share of each layer's numbers that is removed.")] = 0.2,
    targets: Annotated[str, typer.Option(help="all-linear, or a regular expression for layers.")] = "all-linear",
    exclude: Annotated[str, typer.Option(help="Layers to leave alone, as a regular expression.")] = "lm_head",
    windows: Annotated[int, typer.Option(help="Calibration and scoring windows at most, each.")] = 64,
    length: Annotated[int, typer.Option(help="Tokens of a window.")] = 256,
    search: Annotated[int, typer.Option(min=0, help="Find every layer's share by trying each alone at 10 to 60 percent, scored on this many calibration windows; 0: all alike.")] = 0,
    sequential: Annotated[bool, typer.Option("--sequential", help="Measure each layer behind the compressed ones.")] = False,
    refit: Annotated[bool, typer.Option("--refit", help="Fit the second factor again by least squares.")] = False,
    factored: Annotated[bool, typer.Option("--factored", help="Save the factors (for deltaw.load_compressed) instead of dense weights.")] = False,
    dtype: Dtype = "float32",
    json: AsJson = False,
) -> None:
    """Compress a model's linear layers; perplexity and speed before and after, in the same run. The saved directory is loadable by
    transformers (dense weights: no smaller on disk), or with --factored by deltaw.load_compressed (smaller)."""

    from ..compress import compress, count, dense, save_compressed
    from ..errors import SpecError
    from ..ratios import search_ratios
    from ..train import load_base

    if out is not None and out.exists():
        raise SpecError(f"{out} exists already; choose a new directory")
    net, tokenizer = load_base(model, dtype)
    ids = tokenizer(data.read_text(encoding="utf-8"), return_tensors="pt")["input_ids"][0]
    many = len(ids) // length
    if many < 4:
        raise SpecError(f"{data}: {len(ids)} tokens; at least {4 * length} are needed (four windows of {length})")
    rows = ids[: many * length].view(many, length)
    calibration, held = rows[: 3 * many // 4][:windows], rows[3 * many // 4 :][:windows]
    before = {"perplexity": perplexity(net, held), **speed(net, held)}
    where: Any = {"targets": targets, "exclude": [exclude] if exclude else []}
    batches = [{"input_ids": r[None]} for r in calibration]
    ratios = search_ratios(net, method, ratio, lambda m: perplexity(m, calibration[:search]), batches, **where, progress=progress(json, "trials")) if search > 0 else None
    found = compress(net, method, ratio, batches, **where, ratios=ratios, sequential=sequential, refit=refit, progress=progress(json, "layers"))
    if not json:
        say()
    after = {"perplexity": perplexity(net, held), **speed(net, held)}
    facts: dict[str, Any] = {
        "model": model, "method": method, "ratio": ratio, "parameters": {"before": found.before, "after": found.after}, "before": before,
        "after": after, "prefill_ratio": after["prefill_seconds"] / before["prefill_seconds"], "token_ratio": after["token_seconds"] / before["token_seconds"],
        "windows": {"calibration": len(calibration), "scored": len(held), "searched": search, "length": length}, "ratios": ratios, "sites": found.sites,
    }  # fmt: skip
    if out is not None:
        if factored:
            save_compressed(net, out, facts)
        else:
            _save_dense(dense(net), tokenizer, out, facts)
        facts["directory"] = str(out)
    if json:
        as_json(facts)
        return
    table(["site", "rank", "error of W", "error of W x"], [[s, v["rank"], v["error"], v.get("output_error")] for s, v in found.sites.items()])
    say(f"{method}, {ratio:.0%} removed: {found.before:,} to {count(net) if factored else found.after:,} parameters")
    say(f"perplexity {before['perplexity']:.3f} to {after['perplexity']:.3f}; prefill {facts['prefill_ratio']:.2f} x, a token {facts['token_ratio']:.2f} x the time")
    if out is not None:
        say(f"written to {out}" + ("" if factored else " (dense: --factored keeps the factors, and is smaller)"))


def perplexity(net: Any, rows: Any) -> float:
    import torch

    net.eval()
    with torch.no_grad():
        total = sum(float(net(input_ids=r[None], labels=r[None]).loss) for r in rows)
    return math.exp(min(total / len(rows), 700.0))


def speed(net: Any, rows: Any) -> dict[str, float]:
    """Seconds of a pass over a window, and of one further token; the medians of five."""
    import torch

    prefill, token = [], []
    with torch.no_grad():
        for _ in range(6):
            began = time.perf_counter()
            seen = net(input_ids=rows[:1], use_cache=True)
            prefill.append(time.perf_counter() - began)
            began = time.perf_counter()
            net(input_ids=rows[:1, :1], past_key_values=seen.past_key_values, use_cache=True)
            token.append(time.perf_counter() - began)
    return {"prefill_seconds": sorted(prefill[1:])[2], "token_seconds": sorted(token[1:])[2]}


def progress(quiet: bool, what: str) -> Any:
    """A line that counts them, on a terminal."""
    import sys

    if quiet or not sys.stderr.isatty():
        return None
    return lambda done, total: print(f"\r{done} of {total} {what}", end="", file=sys.stderr, flush=True)


def _save_dense(net: Any, tokenizer: Any, out: Path, facts: dict[str, Any]) -> None:
    """Into a directory beside, then renamed: a full disk leaves nothing half-written."""
    import json as jsonlib
    import os
    import shutil

    new = out.with_name(f".{out.name}.part")
    shutil.rmtree(new, ignore_errors=True)
    new.parent.mkdir(parents=True, exist_ok=True)
    net.save_pretrained(new)
    tokenizer.save_pretrained(new)
    (new / "compressed.json").write_text(jsonlib.dumps(facts, indent=1) + "\n", encoding="utf-8")
    os.replace(new, out)
