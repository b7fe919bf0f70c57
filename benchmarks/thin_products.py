"""What low-rank products cost beside the base's own: the bound below which no adapted step can be.

    python benchmarks/thin_products.py [--threads 2] [--cpu-time] [--out benchmarks/results]

For layers of several shapes at 1024 tokens, rank 16: the two products of the frozen layer, the six of an adapted one (each alone,
best of several), the gradient of a thin factor with either factor in front, a sparse write beside a copy of the weight, and
the merging product beside one read and one write of the weight. Writes one JSON record.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from deltaw.demo.machine import machine, versions
from deltaw.train.host import tune_allocator

SHAPES = [(576, 576), (192, 576), (1536, 576), (576, 1536), (2048, 2048)]
TOKENS, RANK = 1024, 16
clock = time.perf_counter


def best(work: Callable[[], Any], repeats: int = 25) -> float:
    times = []
    for _ in range(repeats):
        began = clock()
        work()
        times.append(clock() - began)
    return min(times[5:])


def case(m: int, n: int, dtype: torch.dtype) -> dict[str, Any]:
    T, r = TOKENS, RANK
    draw = lambda *shape: torch.randn(shape, dtype=dtype)  # noqa: E731
    x, W, A, B, g, z = draw(T, n), draw(m, n), draw(r, n), draw(m, r), draw(T, m), draw(T, r)
    y, gx, new = draw(T, m), draw(T, n), draw(m, n)
    k = r * (m + n)
    where, values = torch.randperm(m * n)[:k].sort().values, draw(k)
    base = best(lambda: x @ W.mT) + best(lambda: g @ W)
    six = {
        "A x": best(lambda: x @ A.mT), "y += B z": best(lambda: y.addmm_(z, B.mT)), "B^T g": best(lambda: g @ B),
        "z^T g": best(lambda: z.mT @ g), "gz^T x": best(lambda: z.mT @ x), "gx += A^T gz": best(lambda: gx.addmm_(z, A)),
    }  # fmt: skip
    copy = best(lambda: new.copy_(W))
    return {
        "shape": [m, n], "dtype": str(dtype).removeprefix("torch."), "base": base, "thin": six, "thin / base": sum(six.values()) / base,
        "thin FLOPs / base": 3 * r * (m + n) / (2 * m * n), "g^T z / z^T g": best(lambda: g.mT @ z) / six["z^T g"],
        "copy of W": copy, "W + B A / copy": best(lambda: torch.addmm(W, B, A, out=new)) / copy,
        "B A / copy": best(lambda: torch.mm(B, A, out=new)) / copy,
        "sparse share": k / (m * n), "sparse write / copy": best(lambda: new.view(-1).put_(where, values)) / copy,
    }  # fmt: skip


def main() -> None:
    global clock
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--cpu-time", action="store_true", help="the process's own time: beside other work, with one thread"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    clock = time.process_time if args.cpu_time else clock
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    allocator = tune_allocator()
    rows = [case(m, n, dtype) for dtype in (torch.float32, torch.bfloat16) for m, n in SHAPES]
    for row in rows:
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items() if k != "thin"})
    today = datetime.date.today().isoformat()
    record = {
        "what": "thin-products", "date": today, "command": "python benchmarks/thin_products.py", "machine": machine(),
        "versions": versions(), "threads": args.threads, "allocator": allocator, "tokens": TOKENS, "rank": RANK, "rows": rows,
    }  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"thin-products-{today}.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
