"""Does the best learning rate stay when the model gets wider? The standard parametrisation and muP, on real text.

    python benchmarks/transfer.py run [--widths 32,96,256] [--seeds 0,1] [--quick] [--out DIR]
    python benchmarks/transfer.py report           # docs/transfer.md and its picture, from the newest record

A Llama of two layers (heads of 16 numbers, bytes as tokens) is trained from scratch on the texts of `pydoc_data.topics`, which ship with
CPython: 50 steps of AdamW (no weight decay) on 16 pieces of 64 bytes, warm-up over 5 steps, then linear decay to 0. Weights start with a standard deviation of 1 / sqrt(width), which was chosen after
a trial: from the usual 0.02 at every width, far too little at the smallest, muP's best rate moved too. Every width, parametrisation, rate and seed is
one run; its score is the loss on the last twentieth of the text, which is not trained on. muP is relative to the smallest width, where both
are the same model with the same rates. A rate is best where the mean over seeds is lowest. The record is written after every run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from torch import Tensor, nn

import deltaw
from deltaw.bench.record import put
from deltaw.demo.machine import load_average, machine, versions
from deltaw.report.panels import panels
from deltaw.study.widths import at_width, drawn, tiny_config
from deltaw.train.host import tune_allocator

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results", HERE.parent / "docs" / "transfer.md"
WIDTHS, SEEDS, STEPS, BATCH, LENGTH = (32, 96, 256), (0, 1), 50, 16, 64
RATES = tuple(1e-3 * 2**k for k in range(8))
WAYS = {"standard": "standard parametrisation", "mup": "muP"}


def text() -> tuple[Tensor, Tensor]:
    """(training bytes, held-out bytes)."""
    import pydoc_data.topics

    data = "\n\n".join(pydoc_data.topics.topics[k] for k in sorted(pydoc_data.topics.topics)).encode()
    ids = torch.tensor(list(data))
    cut = len(ids) - len(ids) // 20
    return ids[:cut], ids[cut:]


def pieces(ids: Tensor, count: int, seed: int) -> Tensor:
    """`count` pieces from random places: the same for every width, parametrisation and rate."""
    starts = torch.randint(0, len(ids) - LENGTH, (count,), generator=torch.Generator().manual_seed(seed))
    return torch.stack([ids[i : i + LENGTH] for i in starts.tolist()])


def loss(model: nn.Module, ids: Tensor) -> Tensor:
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def rate_at(step: int, steps: int) -> float:
    warm = max(1, steps // 10)
    return min((step + 1) / warm, (steps - step) / (steps - warm + 1))


def one(way: str, width: int, base: int, rate: float, seed: int, steps: int, held: Tensor, train: Tensor) -> float:
    config = tiny_config()
    config.initializer_range = (base if way == "mup" else width) ** -0.5  # muP makes of it what the width asks for
    torch.manual_seed(seed)
    model = drawn(at_width(config, width))
    rule = deltaw.mup(model, drawn(at_width(config, base))) if way == "mup" else "adamw"
    optimizer = deltaw.optimizer(model, rule, rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, steps))
    for step in range(steps):
        optimizer.zero_grad()
        loss(model, pieces(train, BATCH, 1000 * seed + step)).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return float(loss(model.eval(), held))


def measure(widths: list[int], rates: list[float], seeds: list[int], steps: int, out: Path, quick: bool) -> Path:
    allocator, before, began = tune_allocator(), load_average(), time.perf_counter()
    train, rest = text()
    held = pieces(rest, 64, 0)
    today = datetime.date.today().isoformat()
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"transfer-{today}.json"
    rows: list[dict[str, Any]] = []
    for width in widths:
        for way in WAYS:
            for rate in rates:
                for seed in seeds:
                    spent = time.process_time()
                    value = one(way, width, min(widths), rate, seed, steps, held, train)
                    rows.append(
                        {
                            "way": way,
                            "width": width,
                            "rate": rate,
                            "seed": seed,
                            "loss": value,
                            "cpu": time.process_time() - spent,
                        }
                    )
                    print(f"{way:9s} {width:4d} {rate:8.4f} seed {seed}: {value:.4f}", flush=True)
                    record = {
                        "what": "transfer", "date": today, "command": "python benchmarks/transfer.py run", "quick": quick, "machine": machine(),
                        "versions": versions(), "threads": torch.get_num_threads(), "allocator": allocator, "load_before": before,
                        "load_after": load_average(), "seconds": time.perf_counter() - began, "steps": steps, "batch": BATCH, "length": LENGTH,
                        "widths": widths, "rates": rates, "seeds": seeds, "rows": rows,
                    }  # fmt: skip
                    put(record, path)
    return path


# ---- what is made of it


def scores(record: dict[str, Any], way: str, width: int, seed: int | None = None) -> dict[float, float]:
    """{rate: loss}, of one seed or the mean; a run that ended in no number counts as infinitely bad."""
    found: dict[float, list[float]] = {}
    for r in record["rows"]:
        if r["way"] == way and r["width"] == width and seed in (None, r["seed"]):
            found.setdefault(r["rate"], []).append(r["loss"] if math.isfinite(r["loss"]) else math.inf)
    return {rate: statistics.fmean(v) for rate, v in sorted(found.items())}


def best(found: dict[float, float]) -> float:
    return min(found, key=lambda rate: found[rate])


def summary(record: dict[str, Any]) -> list[dict[str, Any]]:
    """For each parametrisation and width: the best rate, how far it is from the smallest width's in powers of two, and what is
    lost by taking the smallest width's rate instead; with the same for every seed."""
    out = []
    small = min(record["widths"])
    for way in WAYS:
        for width in record["widths"]:
            found, first = scores(record, way, width), scores(record, way, small)
            each = [(scores(record, way, width, s), scores(record, way, small, s)) for s in record["seeds"]]
            out.append({
                "way": way, "width": width, "rate": best(found), "loss": found[best(found)], "shift": math.log2(best(found) / best(first)),
                "lost": found[best(first)] - found[best(found)], "shifts": [math.log2(best(a) / best(b)) for a, b in each],
                "losts": [a[best(b)] - a[best(a)] for a, b in each], "edge": best(found) in (min(found), max(found)),
            })  # fmt: skip
    return out


def table(record: dict[str, Any]) -> list[str]:
    lines = [
        "| parametrisation | width | best rate | loss there | shift of the best rate | per seed | loss with the smallest width's rate | per seed |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for r in summary(record):
        at_edge = " (edge of the grid)" if r["edge"] else ""
        lines.append(
            f"| {WAYS[r['way']]} | {r['width']} | {r['rate']:g}{at_edge} | {r['loss']:.3f} | 2^{r['shift']:+.0f} | "
            f"{', '.join(f'{v:+.0f}' for v in r['shifts'])} | {r['lost']:+.3f} | {', '.join(f'{v:+.3f}' for v in r['losts'])} |"
        )
    return lines


def picture(record: dict[str, Any]) -> str:
    """Loss over rate, a curve for each width. Losses above that of guessing among 256 bytes are left out."""
    found = {
        name: {f"n = {w}": [q for q in scores(record, way, w).items() if q[1] < math.log(256)] for w in record["widths"]}
        for way, name in WAYS.items()
    }  # fmt: skip
    return panels(found, "learning rate", "loss on held-out text (large dot: the best rate)", log="x", best=True)


def report(results: Path = RESULTS, page: Path = PAGE) -> None:
    lines = [
        "# Learning rates over widths",
        "",
        "<!-- generated by `python benchmarks/transfer.py report` from the record; edit nothing here -->",
        "",
    ]
    lines += [*(__doc__ or "").split("\n\n")[2].strip().splitlines(), ""]
    found = sorted(results.glob("transfer-*.json"))
    if not found:
        lines += ["No record yet: `python benchmarks/transfer.py run`.", ""]
    else:
        record = json.loads(found[-1].read_text())
        at = page.parent / "benchmarks" / "transfer.svg"
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_text(picture(record), encoding="utf-8")
        lines += [
            f"Widths {', '.join(map(str, record['widths']))}; rates {', '.join(f'{r:g}' for r in record['rates'])}; seeds "
            f"{', '.join(map(str, record['seeds']))}; {record['date']}, {record['machine']['cpu']}, torch {record['versions']['torch']}, "
            f"{record['threads']} threads, {record['seconds']:.0f} s.",
            "", *table(record), "",
            "Shift: of the best rate against the smallest width's, in powers of two. The loss columns say what is added to the loss at the best rate by "
            "taking the rate that is best at the smallest width.",
            "", f"![loss over learning rate](benchmarks/{at.name})", "",
            f"Record: [{found[-1].name}]({os.path.relpath(found[-1], page.parent)})", "",
        ]  # fmt: skip
    page.write_text("\n".join(lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    run = what.add_parser("run")
    run.add_argument("--widths", default=",".join(map(str, WIDTHS)))
    run.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    run.add_argument("--rates", default=",".join(map(str, RATES)))
    run.add_argument("--threads", type=int, default=1)
    run.add_argument("--quick", action="store_true", help="two steps, two widths, two rates: shows that it runs")
    run.add_argument("--out", type=Path, default=RESULTS)
    what.add_parser("report")
    args = parser.parse_args()
    if args.what == "report":
        report()
        return
    torch.set_num_threads(args.threads)
    widths, seeds = ([int(v) for v in words.split(",")] for words in (args.widths, args.seeds))
    rates = list(RATES[3:5]) if args.quick else [float(v) for v in args.rates.split(",")]
    print(
        measure(
            [16, 32] if args.quick else widths,
            rates,
            seeds[:1] if args.quick else seeds,
            2 if args.quick else STEPS,
            args.out,
            args.quick,
        )
    )


if __name__ == "__main__":
    main()
