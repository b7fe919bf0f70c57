"""What HF PEFT can do with each method that both libraries have: its cells of the capability matrix, by running it.

    python benchmarks/peft_matrix.py [--out DIR]

Tiny layers of 24 x 16, float32, on the CPU; "quantised" is one of bitsandbytes' layers on the CPU. "yes" is granted
generously: the call is there, it runs and it has an effect. Our own cells stand beside. Writes one JSON record.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
warnings.filterwarnings("ignore")

import peft
import torch

from deltaw.matrix import capabilities, theirs


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results"))
    args = parser.parse_args()
    start = time.perf_counter()
    found = theirs.capabilities()
    ours = capabilities(found)
    cells = {
        key: {c: {"peft": cell.to_dict(), "deltaw": ours[key][c].to_dict()} for c, cell in row.items()}
        for key, row in found.items()
    }
    worse = [f"{k}: {c}" for k, row in found.items() for c, cell in row.items() if cell.works and not ours[k][c].works]
    record = {
        "what": "capability matrix, PEFT's cells by running PEFT",
        "versions": {"peft": peft.__version__, "torch": torch.__version__},
        "date": time.strftime("%Y-%m-%d"),
        "seconds": round(time.perf_counter() - start, 1),
        "worse_than_peft": worse,
        "cells": cells,
    }
    path = args.out / f"peft-matrix-{record['date']}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{path}: {len(cells)} methods, worse than PEFT: {worse or 'nowhere'}")


if __name__ == "__main__":
    main()
