"""Does the rule of deltaw.fused choose the fastest path? Every path of an expression timed beside the others.

    python benchmarks/fused_rule.py [--threads 2] [--repeats 5] [--cpu-time] [--out benchmarks/results]

For deltas of several forms, shapes, token counts and dtypes: forward and backward by the walk, as thin factors and joined
with the weight (where these exist), interleaved; the path the rule takes; and its regret, the time of the path it takes over the best path's.
Writes one JSON record.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import nn

import deltaw
from deltaw.demo.machine import machine, versions
from deltaw.fused import walking
from deltaw.fused.choose import Way, choose
from deltaw.methods import ABBA, GraLoRA, HiRA, LoHa, LoKr, LoRA, SHiRA, VeRA
from deltaw.ops import Dense, add, factors
from deltaw.plan import Plan
from deltaw.train.host import tune_allocator

SHAPES = [(576, 576), (192, 576), (1536, 576), (2048, 2048)]
METHODS = [
    LoRA(r=16), LoRA(r=128), VeRA(r=256), LoHa(r=4), LoHa(r=16), ABBA(r1=16, r2=16), LoKr(r=16), GraLoRA(r=32, k=2), HiRA(r=16),
    SHiRA(r=16),
]  # fmt: skip


clock = time.perf_counter


def ways(op: Any, x: torch.Tensor) -> dict[str, Any]:
    """Every path there is for base + delta."""
    T = x.numel() // x.shape[-1]
    base, delta = op.terms[0], op.terms[1:]
    found = {"walk": None, "joined": Way(base, dense=delta)}
    chosen = choose(op, x, T)
    if chosen.parts is not None:
        found["thin"] = chosen
    elif (pair := factors(add(*delta))) is not None:
        found["thin"] = Way(base, parts=[Dense(pair[0]), Dense(pair[1])])
    return found


def once(model: nn.Module, way_of: str, x: torch.Tensor, w: torch.Tensor) -> float:
    began = clock()
    place = model[0].__dict__["forward"]
    entry, base = place.entry("default"), place.sites[""].leaf()
    L = entry.layer(base, {})
    way = ways(L.op, x)[way_of]
    with walking():
        y = L.walk(x) if way is None else way.run(L.bias, x)
    (y * w).sum().backward()
    spent = clock() - began
    for p in model.parameters():
        p.grad = None
    return spent


def case(method: Any, m: int, n: int, T: int, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(n, m, bias=False)).to(dtype)
    adapted = deltaw.attach(model, Plan(method, targets=["0"]))
    for p in adapted.trainable().values():
        p.data.add_(torch.randn_like(p) * 0.01)
    x = torch.randn(T, n).to(dtype).requires_grad_()
    w = torch.randn(T, m).to(dtype)
    place = model[0].__dict__["forward"]
    op = place.entry("default").layer(place.sites[""].leaf(), {}).op
    names = list(ways(op, x))
    times: dict[str, list[float]] = {name: [] for name in names}
    for k in range(repeats + 1):
        for name in names:
            t = once(model, name, x, w)
            if k:
                times[name].append(t)
    middle = {name: min(ts) for name, ts in times.items()}
    taken = choose(op, x, T)
    path = "walk" if taken.base is None else "thin" if taken.parts is not None else "joined"
    best = min((t, name) for name, t in middle.items())
    return {
        "method": repr(method), "shape": [m, n], "tokens": T, "dtype": str(dtype).removeprefix("torch."), "seconds": middle,
        "taken": path, "best": best[1], "regret": middle[path] / best[0],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--cpu-time", action="store_true", help="the process's own time: beside other work, with one thread"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    if args.cpu_time:
        global clock
        clock = time.process_time
    torch.set_num_threads(args.threads)
    allocator = tune_allocator()
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        for m, n in SHAPES:
            for T in (64, 1024):
                for method in METHODS:
                    rows.append(case(method, m, n, T, dtype, args.repeats))
                    r = rows[-1]
                    print(
                        f"{r['dtype']:9s} {m}x{n} T={T:5d} {r['method'][:44]:44s} {r['taken']:7s} best {r['best']:7s} {r['regret']:.2f}"
                    )
    regrets = sorted(r["regret"] for r in rows)
    summary = {"median": statistics.median(regrets), "90 %": regrets[int(0.9 * len(regrets))], "worst": regrets[-1]}
    print(summary)
    today = datetime.date.today().isoformat()
    record = {
        "what": "fused-rule", "date": today, "command": "python benchmarks/fused_rule.py", "machine": machine(), "versions": versions(),
        "threads": args.threads, "allocator": allocator, "repeats": args.repeats, "seed": 0, "regret": summary, "rows": rows,
        "python": platform.python_version(),
    }  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"fused-rule-{today}.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
