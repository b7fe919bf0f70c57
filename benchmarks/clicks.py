"""AFM on a click model: its embedding table and its layers compressed, against plain SVD, on data that ships with scikit-learn.

    python benchmarks/clicks.py run [--quick] [--out DIR]
    python benchmarks/clicks.py report                      # docs/clicks.md, from the newest record

The model is the usual one for clicks: fields of categories, a row of one table for each category, the rows side by side into an MLP, a logit.
The data are breast_cancer's 30 measurements in 16 buckets of equal size each (480 categories), 569 rows: half trains, a quarter chose the
number of epochs, a quarter is scored (area under the curve, log loss). Table: 16 numbers a row cut to k. Layers: a share removed. Then two
epochs of fine-tuning, for what was compressed and for the dense model alike. Differences are taken seed by seed (data split, start, order).
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor, nn

import deltaw
from deltaw.bench.interval import interval
from deltaw.bench.record import put
from deltaw.compress import factored_table
from deltaw.demo.machine import machine, versions
from deltaw.methods.compress.factorise import factorise

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results", HERE.parent / "docs" / "clicks.md"
BUCKETS, DIM, KS, RATIOS, SEEDS = 16, 16, (8, 4, 2, 1), (0.5, 0.7, 0.9), tuple(range(10))


class Clicks(nn.Module):
    """One table for all fields, an MLP over its rows."""

    def __init__(self, fields: int):
        super().__init__()
        self.table = nn.Embedding(fields * BUCKETS, DIM)
        self.body = nn.Sequential(nn.Linear(fields * DIM, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(self.table(x).flatten(1))[:, 0]
        return y


def data(seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    found = load_breast_cancer()
    X, y = torch.tensor(found.data), torch.tensor(found.target, dtype=torch.float32)
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(seed))
    train, validation, test = order[:284], order[284:426], order[426:]
    edges = torch.quantile(X[train], torch.linspace(0, 1, BUCKETS + 1, dtype=X.dtype)[1:-1], dim=0)
    codes = torch.stack([torch.bucketize(X[:, f].contiguous(), edges[:, f].contiguous()) + BUCKETS * f for f in range(X.shape[1])], 1)
    return {k: (codes[i], y[i]) for k, i in (("train", train), ("validation", validation), ("test", test))}


def train(net: nn.Module, rows: tuple[Tensor, Tensor], epochs: int, lr: float, seed: int) -> None:
    random, optimizer = torch.Generator().manual_seed(seed), torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=1e-2)
    net.train()
    for _ in range(epochs):
        for part in torch.randperm(len(rows[0]), generator=random).split(32):
            optimizer.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(net(rows[0][part]), rows[1][part]).backward()
            optimizer.step()


@torch.no_grad()
def scored(net: nn.Module, rows: tuple[Tensor, Tensor]) -> dict[str, float]:
    p = torch.sigmoid(net.eval()(rows[0])).double().clamp(1e-7, 1 - 1e-7)
    return {"auc": float(roc_auc_score(rows[1], p)), "loss": float(log_loss(rows[1], p)), "parameters": sum(t.numel() for t in net.parameters())}


def compressed(net: Clicks, what: str, size: float, rows: tuple[Tensor, Tensor]) -> Clicks:
    out = copy.deepcopy(net)
    part, method = what.split()
    if part == "table":
        counts = torch.bincount(rows[0].flatten(), minlength=out.table.num_embeddings)
        if method == "afm":
            out.table = factored_table(out.table, counts, int(size))  # type: ignore[assignment]
        else:
            L, R = factorise(out.table.weight.detach(), int(size))[:2]
            new = nn.Sequential(nn.Embedding(len(L), int(size)), nn.Linear(int(size), DIM, bias=False))
            with torch.no_grad():
                new[0].weight.copy_(L)
                new[1].weight.copy_(R.mT)
            out.table = new  # type: ignore[assignment]
    else:
        deltaw.compress(out, {"afm": "afm_ctr"}.get(method, method), size, [rows[0]], targets=r"body\.[02]")
    return out


def one(seed: int, quick: bool) -> list[dict[str, Any]]:
    parts = data(seed)
    torch.manual_seed(seed)
    net = Clicks(30)
    best, kept = float("inf"), copy.deepcopy(net)
    for epoch in range(2 if quick else 12):
        train(net, parts["train"], 1, 3e-3, 100 * seed + epoch)
        if (found := scored(net, parts["validation"])["loss"]) < best:
            best, kept = found, copy.deepcopy(net)
    out = []
    cases = [("table", m, k) for m in ("afm", "svd") for k in KS] + [("layers", m, r) for m in ("afm", "svd", "svd_llm") for r in RATIOS]
    for part, method, size in [("dense", "", 0), *cases]:
        small = copy.deepcopy(kept) if part == "dense" else compressed(kept, f"{part} {method}", size, parts["train"])
        row = {"seed": seed, "part": part, "method": method, "size": size, "at_once": scored(small, parts["test"])}
        train(small, parts["train"], 1 if quick else 2, 1e-3, 7000 + seed)
        out.append(row | {"tuned": scored(small, parts["test"])})
    return out


def run(quick: bool, out: Path) -> Path:
    torch.set_num_threads(1)
    seeds = SEEDS[:2] if quick else SEEDS
    record: dict[str, Any] = {"what": "clicks", "date": datetime.date.today().isoformat(), "quick": quick, "seeds": list(seeds), "machine": machine(), "versions": versions()}
    record["rows"] = [r for s in seeds for r in one(s, quick)]
    out.mkdir(parents=True, exist_ok=True)
    return put(record, out / f"clicks-{'quick-' if quick else ''}{record['date']}.json")


def report(results: Path = RESULTS, page: Path = PAGE) -> None:
    lines = ["# A click model, compressed", "", "<!-- generated by `python benchmarks/clicks.py report` -->", ""]
    for paragraph in (__doc__ or "").split("\n\n")[2:]:
        lines += [*paragraph.strip().splitlines(), ""]
    files = sorted(results.glob("clicks-2*.json"))
    if not files:
        page.write_text("\n".join([*lines, "No record yet.", ""]))
        return
    record = json.loads(files[-1].read_text())
    rows = record["rows"]
    dense = {r["seed"]: r for r in rows if r["part"] == "dense"}
    lines += [f"{len(record['seeds'])} seeds, {record['date']}; 95 % t-intervals of the difference to the dense model's area (fine-tuned by as much), in points.", "",
              "| compressed | method | size | parameters | area at once | after fine-tuning | minus the dense model's |", "|---|---|---:|---:|---:|---:|---:|"]  # fmt: skip
    for part, method, size in dict.fromkeys((r["part"], r["method"], r["size"]) for r in rows):
        mine = [r for r in rows if (r["part"], r["method"], r["size"]) == (part, method, size)]
        at, tuned = (statistics.fmean(r[w]["auc"] for r in mine) for w in ("at_once", "tuned"))
        d, half = interval([100 * (r["tuned"]["auc"] - dense[r["seed"]]["tuned"]["auc"]) for r in mine]) if part != "dense" else (0.0, 0.0)
        word = "" if part == "dense" else f"k = {size}" if part == "table" else f"{size:.0%} removed"
        lines.append(f"| {part} | {method} | {word} | {mine[0]['tuned']['parameters']:,} | {100 * at:.2f} | {100 * tuned:.2f} | {d:+.2f} ± {half:.2f} |")
    page.write_text("\n".join([*lines, "", f"Record: [{files[-1].name}](../benchmarks/results/{files[-1].name})", ""]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["run", "report"])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    print(run(args.quick, args.out)) if args.what == "run" else report()


if __name__ == "__main__":
    main()
