"""Bases that are smaller: quantised ones under LoRA, LoftQ, LQ-LoRA and QWHA, and compressed ones, on SmolLM2.

    python benchmarks/bases.py encode --data FILE.pt                 # words and text as tokens, for a machine without reasoning-gym
    python benchmarks/bases.py run [--parts start,quantised,memory,compressed,loram] [--device cuda] [--jobs 6] [--data FILE] [--size cpu] [--quick] [--out DIR] [--resume RECORD.json]
    (what the day's record, or the one named, has already is not run again)
    python benchmarks/bases.py report                                # docs/bases.md, from the newest record

start: what "quantised" finds out before it trains. quantised: the base at 4 and 3 bits; how far weights and outputs are off before training (relative error of all weights; KL of the next token
on text, against the unquantised model), then the words task (see ranks.py) with equally many trained numbers, rates tuned over
the same ladder, three seeds. The unquantised base in bfloat16 is the reference. memory: bytes of the base's weights, and of a training step.
compressed: perplexity of text that calibrated nothing, after removing 20 % and 50 % of every layer's numbers; LoRAPrune after training on the
calibration text. loram: LoRA trained on a pruned model and recovered on the large one, against LoRA on the large one, and what each held.
Text: the Python language reference, as CPython ships it (pydoc_data.topics). --size cpu (see ranks.py): less of everything, one seed in "compressed".
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import math
import multiprocessing
import os
import statistics
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

for _name, _value in (("HF_HUB_OFFLINE", "1"), ("TOKENIZERS_PARALLELISM", "false")):
    os.environ.setdefault(_name, _value)

import ranks as words
import torch
from torch import Tensor, nn

import deltaw
from deltaw import prune
from deltaw.bench.count import saved_bytes
from deltaw.bench.interval import interval
from deltaw.bench.ladder import next_rung
from deltaw.bench.record import put
from deltaw.codecs import NF, Dynamic
from deltaw.convert import site_delta
from deltaw.demo.machine import load_average, machine, versions
from deltaw.methods import lq
from deltaw.methods.compress.lq_lora import LQLoRA
from deltaw.methods.init.loftq import alternated
from deltaw.quantise import QuantLinear

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results", HERE.parent / "docs" / "bases.md"
R, LENGTH = 16, 256
CODECS = {4: NF(4, 64, Dynamic()), 3: NF(3, 64, Dynamic())}
WAYS = ("qlora", "loftq", "lq_lora", "lq_lora_fisher", "qwha_quant")
RATES = (3.16e-4, 1e-3, 3.16e-3)
# Of the ladder: QWHA divides c by sqrt(m) n / s, so a first step of Adam at one rate moves its weights some 1,900 times less than LoRA's
# (0.25 sqrt(32) / (24 * 576) against 2 sqrt(16) * 0.024, m = n = 576); chosen after its losses hardly moved at 0.01.
SCALES = {"qwha_quant": 1000.0}
CHOICES = lq.options((2, 3, 4), (8,), (torch.float16,), (32, 64), (256,))  # of the paper's 432, those that change the price most


# ---- data


def text(tokenizer: Any, windows: int = 160) -> dict[str, Tensor]:
    """Windows of LENGTH tokens; every fourth is scored, the others calibrate and train."""
    from pydoc_data.topics import topics

    ids = tokenizer("\n\n".join(topics[k] for k in sorted(topics)), return_tensors="pt")["input_ids"][0]
    rows = ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))][:windows]
    held = torch.arange(len(rows)) % 4 == 3
    return {"train": rows[~held], "held": rows[held]}


def encode(file: Path, size: Any) -> None:
    from deltaw.train import load_base

    torch.save({"words": words.questions(size), "text": text(load_base(words.MODEL, "bfloat16")[1])}, file)


@torch.no_grad()
def perplexity(net: Any, rows: Tensor, device: str) -> float:
    net.eval()
    losses = [float(net(input_ids=r[None].to(device), labels=r[None].to(device)).loss) for r in rows]
    return math.exp(min(statistics.fmean(losses), 50.0))


@torch.no_grad()
def divergence(net: Any, want: list[Tensor], rows: Tensor, device: str) -> float:
    """KL(original | this) of the next token, mean over positions."""
    net.eval()
    found = []
    for r, w in zip(rows, want):
        got = torch.log_softmax(net(input_ids=r[None].to(device)).logits[0].float(), -1)
        found.append(float((w.to(device).exp() * (w.to(device) - got)).sum(-1).mean()))
    return statistics.fmean(found)


# ---- quantised bases


def layers(net: Any) -> dict[str, nn.Linear]:
    return {n: m for n, m in net.named_modules() if type(m) is nn.Linear and "lm_head" not in n}


def prepared(net: Any, way: str, bits: int, data: Any, device: str, quick: bool) -> tuple[Any, deltaw.Plan, Any]:
    """(the quantised copy, the plan, its statistics)."""
    r = 2 if quick else R
    lora = {"key": "lora", "r": r, "alpha": 2.0 * r}
    rows = data["text"]["train"][: 2 if quick else 24]
    batches = [{"input_ids": x[None].to(device), "labels": x[None].to(device)} for x in rows]
    small, codec = copy.deepcopy(net), CODECS.get(bits)
    if way == "bf16":
        return small, deltaw.Plan.from_dict({"method": lora, "exclude": ["lm_head"]}), None
    weights = {n: m.weight for n, m in layers(net).items()}

    def rounded(M: Tensor) -> Tensor:
        return codec.decode(codec.encode(M), (M.shape[0], M.shape[1]))

    init: Any = None
    if way == "loftq":
        instead = {n: alternated(W.float(), r, 5, rounded) for n, W in weights.items()}
        deltaw.quantise(small, codec, exclude=["lm_head"], instead=instead)
        init = "loftq"
    elif way.startswith("lq_lora"):
        fishers = None
        if way.endswith("fisher"):
            plan = deltaw.Plan.from_dict({"method": lora, "exclude": ["lm_head"]})
            seen = deltaw.probe(net, batches, plan, needs=("fisher",), keep=device)
            fishers = {n: seen.sites[n]["fisher"] for n in weights}
        chosen, rests = LQLoRA(r, codec.bits(576, 576), 3).base(weights, fishers, CHOICES)
        deltaw.quantise(small, {n.replace(".", r"\."): c for n, c in chosen.items()}, exclude=["lm_head"], instead=rests)
        init = "lq_lora" if fishers is not None else "loftq"
    else:
        deltaw.quantise(small, codec, exclude=["lm_head"])
    method: Any = {"key": "qwha", "r": r} if way == "qwha_quant" else lora
    init = "qwha_quant" if way == "qwha_quant" else init
    plan = deltaw.Plan.from_dict({"method": method, "init": init, "exclude": ["lm_head"]})
    stats = deltaw.probe(small, batches, plan, original=net, keep=device) if init else None
    return small, plan, stats


def start(net: Any, job: tuple[Any, ...], data: Any, size: Any, device: str, quick: bool) -> dict[str, Any]:
    """What is off before training."""
    return quantised(net, job, data, size, device, quick, train=False)


def quantised(net: Any, job: tuple[Any, ...], data: Any, size: Any, device: str, quick: bool, train: bool = True) -> dict[str, Any]:
    """All runs of one way at one number of bits: what is off before training, then the ladder, then the seeds."""
    way, bits = job
    small, plan, stats = prepared(net, way, bits, data, device, quick)
    held = data["text"]["held"][: 2 if quick else 16]
    with torch.no_grad():
        want = [torch.log_softmax(net(input_ids=r[None].to(device)).logits[0].float(), -1).cpu() for r in held]
    adapted = deltaw.attach(small, plan, stats=stats)
    off = whole = 0.0
    original = dict(net.named_parameters())
    for a in adapted.assignments:
        W = original[f"{a.site.name}.weight"].detach().float()
        new = a.site.leaf().op.dense().detach().float() + site_delta(adapted, a).dense().detach().float()
        off, whole = off + float((new - W).square().sum()), whole + float(W.square().sum())
    out: dict[str, Any] = {"weight_error": (off / whole) ** 0.5, "kl": divergence(small, want, held, device), "perplexity": perplexity(small, held, device),
                           "trained": sum(t.numel() for t in adapted.trainable().values()), "base_bytes": base_bytes(small), "tuning": [], "runs": []}  # fmt: skip
    adapted.detach()
    if not train:
        return out

    def run(rate: float, seed: int) -> dict[str, Any]:
        again = deltaw.attach(small, deltaw.Plan.from_dict({**plan.to_dict(), "seed": seed}), stats=stats)
        try:
            many = words.batches(data["words"]["train"][seed], size.batch, device)[: size.steps]
            return words._train(small, again, {}, data["words"], many, size, rate, seed, device)
        finally:
            for x in list(deltaw.adapters(small)):
                x.detach()

    rates = [float(f"{rate * SCALES.get(way, 1.0):.3g}") for rate in (RATES[:1] if quick else RATES)]
    out["tuning"] = [run(rate, 0) for rate in rates]
    while rate := next_rung({f["rate"]: words.value(f) for f in out["tuning"]}, 1 if quick else words.RUNGS):
        out["tuning"].append(run(rate, 0))
    best = min(out["tuning"], key=words.value)
    out["rate"] = best["rate"]
    out["runs"] = [run(best["rate"], seed) for seed in size.seeds]
    for r in out["tuning"] + out["runs"]:
        r.pop("ranks", None)
        r.pop("held", None)
    return out


def base_bytes(net: Any) -> int:
    """Of the weights and codes, adapters apart; what is shared counts once."""
    seen = {}
    for name, t in [*net.named_parameters(), *net.named_buffers()]:
        if ".deltaw" not in f".{name}":
            seen[t.data_ptr()] = t.numel() * t.element_size()
    return sum(seen.values())


def memory(net: Any, job: tuple[Any, ...], data: Any, size: Any, device: str, quick: bool) -> dict[str, Any]:
    """Bytes of a base's weights, of what a forward keeps for its backward, and of one training step (GPU): in bfloat16, at 4 bits, pruned."""
    (way,) = job
    out: dict[str, Any] = {}
    small = copy.deepcopy(net).bfloat16()
    if way == "nf4":
        deltaw.quantise(small, CODECS[4], exclude=["lm_head"])
    elif way != "bf16":  # a share, as in "loram"
        ends = (0, 0) if quick else (4, 2)
        small = prune.prune_structured(small, prune.by_norm(small, float(way), *ends)).model
    out["base_bytes"] = base_bytes(small)
    out["layer_bytes"] = sum(t.numel() * t.element_size() for n, m in small.named_modules() if isinstance(m, (nn.Linear, QuantLinear)) and "lm_head" not in n
                             for t in [*m.parameters(recurse=False), *(m.parts().values() if hasattr(m, "parts") else [])])  # fmt: skip
    adapted = deltaw.attach(small, deltaw.Plan.from_dict({"method": {"key": "lora", "r": 2 if quick else R}, "exclude": ["lm_head"]}))
    batch = words.batches(data["words"]["train"][0], size.batch, device)[0]
    optimizer = adapted.optimizer(1e-4, steps=2)
    out["saved_bytes"] = saved_bytes(small, lambda: words.loss_of(small.train(), batch))
    out["trained_bytes"] = sum(4 * 4 * t.numel() for t in adapted.trainable().values())  # values, gradients, two moments
    out |= step_memory(small, optimizer, lambda: words.loss_of(small, batch), device)
    return out


def step_memory(net: Any, optimizer: Any, loss: Any, device: str) -> dict[str, Any]:
    found = {}
    for _ in range(2):
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()
        if device.startswith("cuda"):
            found = {"step_peak_bytes": torch.cuda.max_memory_allocated(), "held_bytes": torch.cuda.memory_allocated()}
    return found


# ---- compressed bases


def train_text(net: Any, optimizer: Any, params: list[Tensor], rows: Tensor, steps: int, rate: float, seed: int, device: str) -> None:
    each = 1 if steps < 100 else 4  # windows a step
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).repeat(1 + steps * each // len(rows))
    net.train()
    for k in range(steps):
        batch = rows[order[each * k : each * k + each]].to(device)
        for group in optimizer.param_groups:
            group["lr"] = rate * words.rate_at(k, steps)
        optimizer.zero_grad(set_to_none=True)
        words.loss_of(net, {"input_ids": batch, "labels": batch, "attention_mask": torch.ones_like(batch)}).backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()


def compressed(net: Any, job: tuple[Any, ...], data: Any, size: Any, device: str, quick: bool) -> dict[str, Any]:
    method, ratio, seed = job
    small, held = copy.deepcopy(net), data["text"]["held"][: 2 if quick else 12 if size.plain else 40]
    train, steps = data["text"]["train"], 4 if quick else 32 if size.plain else 100
    if method == "none":
        return {"perplexity": perplexity(small, held, device), "parameters": sum(p.numel() for p in small.parameters())}
    small.float()
    if method in ("loraprune", "lora"):
        config = {"key": "loraprune", "ratio": ratio, "every": 2 if quick else 10, "head": 64 if not quick else 8} if method == "loraprune" else {"key": "lora", "alpha": 16.0}
        adapted = deltaw.attach(small, deltaw.Plan.from_dict({"method": config, "exclude": ["lm_head"], "seed": seed}))
        optimizer = adapted.optimizer(3e-4, steps=steps)
        train_text(small, optimizer, list(adapted.trainable().values()), train, steps, 3e-4, seed, device)
        if method == "lora":
            return {"perplexity": perplexity(small, held, device), "parameters": sum(p.numel() for p in net.parameters())}
        done = prune.finished(adapted).model
        return {"perplexity": perplexity(done, held, device), "parameters": sum(p.numel() for p in done.parameters()), "events": adapted.events[-1:]}
    name, _, more = method.partition("+")
    batches = [{"input_ids": r[None].to(device)} for r in train[: 4 if quick else 16 if size.plain else 96]]
    found = deltaw.compress(small, name, ratio, batches, exclude=["lm_head"], sequential="sequential" in more)
    out = {"perplexity": perplexity(small, held, device), "parameters": found.after}
    if "lora" in more:
        adapted = deltaw.attach(small, deltaw.Plan.from_dict({"method": {"key": "lora", "alpha": 16.0}, "exclude": ["lm_head"], "seed": seed}))
        train_text(small, adapted.optimizer(3e-4), list(adapted.trainable().values()), train, steps, 3e-4, seed, device)
        out["perplexity"] = perplexity(small, held, device)
    return out


def loram(net: Any, job: tuple[Any, ...], data: Any, size: Any, device: str, quick: bool) -> dict[str, Any]:
    """The words task: LoRA on the large model, on a pruned one, and the pruned one's adapter on the large model."""
    ratio, rate, seed = job
    plan = deltaw.Plan.from_dict({"method": {"key": "lora", "alpha": 16.0}, "exclude": ["lm_head"], "seed": seed})
    many = words.batches(data["words"]["train"][seed], size.batch, device)[: size.steps]
    pruned = prune.prune_structured(net, prune.by_norm(net, ratio, 4, 2)) if ratio else None
    if quick:
        pruned = prune.prune_structured(net, prune.by_norm(net, ratio, 0, 0)) if ratio else None
    small = copy.deepcopy(net) if pruned is None else pruned.model
    before = words.score(small, words.batches(data["words"]["test"], 64, device))
    adapted = deltaw.attach(small, plan)
    run = words._train(small, adapted, {}, data["words"], many, size, rate, seed, device)
    out = {"rate": rate, "seed": seed, "validation": run["validation"], "test": run["test"], "base_bytes": base_bytes(small), "before": before}
    out |= step_memory(small, adapted.optimizer(0.0), lambda: words.loss_of(small, many[0]), device)
    if pruned is not None:
        large = prune.recover(adapted, pruned, net, "zero", name="recovered")
        out["recovered"] = words.score(net, words.batches(data["words"]["test"], 64, device))
        out["recovered_validation"] = words.score(net, words.batches(data["words"]["validation"], 64, device))["loss"]
        large.detach()
    return out


# ---- many jobs

PARTS = {"start": start, "quantised": quantised, "memory": memory, "compressed": compressed, "loram": loram}


def jobs_of(part: str, size: Any, quick: bool) -> list[tuple[Any, ...]]:
    if part == "start":
        return [(way, bits) for bits in (4, 3) for way in WAYS]
    if part == "quantised":
        return [*((way, bits) for bits in (4, 3) for way in WAYS if way != "lq_lora_fisher" or not size.plain), ("bf16", 16)]
    if part == "memory":
        return [("bf16",), ("nf4",), ("0.35",), ("0.65",)]
    if part == "compressed":
        if size.plain:
            return [("none", 0.0, 0), *((m, ratio, 0) for m in ("svd_llm", "loraprune", "svd", "asvd", "svd_llm+lora") for ratio in (0.2, 0.5)), ("lora", 0.0, 0)]
        one = [(m, ratio, 0) for ratio in (0.2, 0.5) for m in ("svd", "asvd", "svd_llm", "svd_llm+sequential", "afm_ctr")]
        many = [(m, ratio, seed) for ratio in (0.2, 0.5) for m in ("loraprune", "svd_llm+lora") for seed in size.seeds]
        return [("none", 0.0, 0), *(("lora", 0.0, s) for s in size.seeds), *one, *many]
    rates = RATES[:1] if quick else (1e-3, 3.16e-3, 1e-2)
    return [(ratio, rate, 0) for ratio in (0.0, 0.35, 0.65) for rate in rates]


def worker(device: str, quick: bool, data: Any, size: Any, todo: Any, done: Any) -> None:
    torch.set_num_threads(1)
    net = words.base(device, quick, "float32" if size.plain else "bfloat16")
    while (job := todo.get()) is not None:
        part, key = job
        for x in list(deltaw.adapters(net)):
            x.detach()
        try:
            done.put((part, key, PARTS[part](net, key, data, size, device, quick)))
        except Exception:
            done.put((part, key, {"error": traceback.format_exc()}))


def measure(parts: list[str], device: str, jobs: int, data: Any, size: Any, quick: bool, out: Path, resume: Path | None = None) -> Path:
    record: dict[str, Any] = {
        "what": "bases", "date": datetime.date.today().isoformat(), "quick": quick, "model": "tiny" if quick else words.MODEL, "size": asdict(size), "r": R,
        "rates": list(RATES), "scales": SCALES, "machine": machine(), "versions": versions(), "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "jobs": jobs, "load_before": load_average(), "found": {p: [] for p in parts},
    }  # fmt: skip
    path = resume or out / f"bases-{'tiny' if quick else 'smollm2'}-{record['date']}.json"
    out.mkdir(parents=True, exist_ok=True)
    if resume or path.exists():
        old = json.loads(path.read_text())
        differ = [k for k in ("size", "device", "model", "versions") if old[k] != json.loads(json.dumps(record[k]))]
        if old["machine"]["cpu_capability"] != record["machine"]["cpu_capability"]:
            differ.append("machine.cpu_capability")
        if differ:
            sys.exit(f"{path} was made with another {', '.join(differ)}: move it away, or use --out")
        record["date"], record["until"] = old["date"], record["date"]
        record["machines_before"] = [*old.get("machines_before", []), old["machine"]]
        record["found"] = {p: [] for p in parts} | {p: [f for f in jobs if "error" not in f] for p, jobs in old["found"].items()}
    known = {(p, json.dumps(f["job"])) for p, found in record["found"].items() for f in found if quick or ended(f)}
    context = multiprocessing.get_context("spawn")
    todo, done = context.Queue(), context.Queue()
    left = 0
    for part in parts:
        for key in jobs_of(part, size, quick):
            if (part, json.dumps(key)) not in known:
                todo.put((part, key))
                left += 1
    workers = [context.Process(target=worker, args=(device, quick, data, size, todo, done), daemon=True) for _ in range(min(jobs, left))]
    for w in workers:
        w.start()
    while left:
        part, key, found = done.get()
        left -= 1
        others = [f for f in record["found"][part] if f["job"] != list(key) or "error" in found]  # an older result stays until there is a better one
        record["found"][part] = [*others, {"job": list(key), **found}]
        if part == "loram" and key[2] == 0 and "error" not in found:  # the best rate of each gets its seeds
            mine = [f for f in record["found"]["loram"] if f["job"][0] == key[0] and f["job"][2] == 0 and "error" not in f]
            if len(mine) == (1 if quick else 3):
                best = min(mine, key=lambda f: f.get("recovered_validation", f["validation"]) or math.inf)
                for seed in size.seeds:
                    todo.put(("loram", (key[0], best["job"][1], seed)))
                    left += 1
        short = found["error"].strip().splitlines()[-1] if "error" in found else {k: v for k, v in found.items() if isinstance(v, (int, float))}
        print(part, key, short, flush=True)
        put(record, path)
    for _ in workers:
        todo.put(None)
    record["load_after"] = load_average()
    return put(record, path)


# ---- the page


def mean(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.4f}" if values else ""
    return "{:.4f} ± {:.4f}".format(*interval(values))


def inside(found: dict[str, Any]) -> bool:
    """Whether worse rates were tried on both sides of the chosen one."""
    tried = [f["rate"] for f in found["tuning"]]
    return bool(min(tried) < found["rate"] < max(tried))


def ended(found: dict[str, Any]) -> bool:
    """False for a job whose ladder stopped too early: it is run again."""
    return not found.get("tuning") or inside(found) or len(found["tuning"]) >= words.RUNGS


def tested(found: dict[str, Any]) -> dict[int, float]:
    """seed -> test loss."""
    return {r["seed"]: r["test"]["loss"] for r in found["runs"] if r.get("test")}


def report(out: Path) -> None:
    files = sorted(out.glob("bases-smollm2-*.json"))
    lines = ["# Smaller bases", "", "<!-- generated by `python benchmarks/bases.py report` -->", ""]
    if not files:
        PAGE.write_text("\n".join([*lines, "No record yet: `python benchmarks/bases.py run`.", ""]))
        return
    r = json.loads(files[-1].read_text())
    size, found = r["size"], r["found"]
    lines += [f"SmolLM2-135M on a {r['device']}, {words.beside(r['jobs'])}, torch {r['versions']['torch']}, {r['date']}{' to ' + r['until'] if r.get('until', r['date']) != r['date'] else ''}. Seeds {size['seeds']}; intervals are 95 % "
              "t-intervals over them.", ""]  # fmt: skip
    if rows := [f for f in found.get("start", []) if "error" not in f]:
        lines += ["## Quantised bases before training", "",
                  f"NF4 and NF3 in blocks of 64 with double quantisation (LQ-LoRA: settings by an integer programme at the same number of bits), r = {r['r']} on all linear layers.", "",
                  "| start | bits | error of all weights | KL of the next token | perplexity of text | trained |", "|---|---:|---:|---:|---:|---:|"]  # fmt: skip
        lines += [f"| {f['job'][0]} | {f['job'][1]} | {f['weight_error']:.4f} | {f['kl']:.4f} | {f['perplexity']:.2f} | {f['trained']:,} |"
                  for f in sorted(rows, key=lambda f: (-f["job"][1], f["kl"]))]  # fmt: skip
        lines.append("")
    if rows := [f for f in found.get("quantised", []) if "error" not in f]:
        lines += [
            "## Quantised bases", "",
            f"NF4 and NF3 in blocks of 64 with double quantisation (LQ-LoRA: settings by an integer programme at the same number of bits), r = {r['r']} on all linear layers; "
            f"the words task, {size['steps']} steps of {size['batch']}; ladder {r['rates']}{''.join(f' ({k}: times {v:g})' for k, v in r.get('scales', {}).items())} and further where the best was at an end. A rate with * is the last that was tried: a better one may follow, and its row decides nothing."
            + (" QWHA divides its coefficients by sqrt(m) n / s, so its rates are others; this ladder was set after one like LoRA's, up to 0.01, had hardly moved its loss."
               if "qwha_quant" in r.get("scales", {}) else ""), "",
            "| start | bits | KL before training | rate | test loss (95 %) | minus qlora's (95 %) | right |", "|---|---:|---:|---:|---:|---:|---:|",
        ]  # fmt: skip
        plain = {f["job"][1]: tested(f) for f in rows if f["job"][0] == "qlora"}
        for f in sorted(rows, key=lambda f: (-f["job"][1], f["job"][0])):
            mine, other = tested(f), plain.get(f["job"][1], {})
            right = statistics.fmean([x["test"]["accuracy"] for x in f["runs"] if x.get("test")] or [0.0])
            apart = mean([mine[k] - other[k] for k in sorted(mine.keys() & other.keys())]) if f["job"][0] != "qlora" else ""
            lines.append(f"| {f['job'][0]} | {f['job'][1]} | {f['kl']:.4f} | {f['rate']:g}{'' if inside(f) else ' *'} | {mean(list(mine.values()))} | {apart} | {100 * right:.1f} % |")
        lines.append("")
    if rows := {f["job"][0]: f for f in found.get("memory", []) if "error" not in f}:
        name = {"bf16": "bfloat16", "nf4": "NF4", "0.35": "LoRAM, 35 % of units removed", "0.65": "LoRAM, 65 % of units removed"}
        lines += ["## Memory of training", "", f"LoRA of rank {r['r']} on all linear layers but the head; \"kept\" is what a forward of {size['batch']} rows of the words task keeps for its "
                  "backward, \"trained\" the adapter with gradients and two moments. LoRAM removes heads and neurons of layers 4 to 27.", "",
                  "| base | bytes of its linear layers | of the whole base | kept | trained | a step's peak (GPU) |", "|---|---:|---:|---:|---:|---:|"]  # fmt: skip
        lines += [f"| {name[k]} | {f['layer_bytes']:,} | {f['base_bytes']:,} | {f['saved_bytes']:,} | {f['trained_bytes']:,} | {f['step_peak_bytes'] if 'step_peak_bytes' in f else 'not measured'} |"
                  for k, f in rows.items()]  # fmt: skip
        if {"bf16", "nf4"} <= rows.keys():
            lines += ["", f"The quantised layers take {rows['nf4']['layer_bytes'] / rows['bf16']['layer_bytes']:.3f} of bfloat16's, the whole base (its embeddings are not "
                      f"quantised) {rows['nf4']['base_bytes'] / rows['bf16']['base_bytes']:.3f}."]  # fmt: skip
        lines.append("")
    if rows := [f for f in found.get("compressed", []) if "error" not in f]:
        lines += ["## Compressed bases", "", "Perplexity of text that calibrated and trained nothing; float32; the share removed is of every linear layer but the head, for "
                  "`loraprune` of the heads and neurons of those layers that it prunes (not the first tenth and the last), rounded down, so that more is "
                  "left: compare by the number of parameters. `lora` and "
                  f"`loraprune` and what has `+lora` were trained on the calibration text for {'32 steps of 1 window' if size.get('plain') else '100 steps of 4 windows'}.", "",
                  "| method | removed | parameters | perplexity |", "|---|---:|---:|---:|"]  # fmt: skip
        keys = sorted({(f["job"][0], f["job"][1]) for f in rows}, key=lambda k: (k[1], k[0]))
        for m, ratio in keys:
            mine = [f for f in rows if f["job"][:2] == [m, ratio]]
            lines.append(f"| {m} | {ratio:.0%} | {mine[0]['parameters']:,} | {mean([f['perplexity'] for f in mine])} |")
        lines.append("")
    if rows := [f for f in found.get("loram", []) if "error" not in f and f["job"][2] > 0]:
        lines += ["## LoRAM", "", "LoRA (r 8) for the words task, trained on a model without a share of its heads and neurons (layers 4 to 27), then recovered on the large one; no "
                  "alignment.", "", "| removed | base while training | a step's peak | test loss there | recovered on the large model: test loss | right |", "|---|---:|---:|---:|---:|---:|"]  # fmt: skip
        for ratio in sorted({f["job"][0] for f in rows}):
            mine = [f for f in rows if f["job"][0] == ratio]
            last = [f.get("recovered") or f["test"] for f in mine if f.get("recovered") or f["test"]]
            lines.append(f"| {ratio:.0%} | {mine[0]['base_bytes']:,} | {mine[0].get('step_peak_bytes', 0):,} | {mean([f['test']['loss'] for f in mine if f['test']])} | "
                         f"{mean([x['loss'] for x in last])} | {100 * statistics.fmean(x['accuracy'] for x in last):.1f} % |")  # fmt: skip
        lines.append("")
    PAGE.write_text("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["encode", "run", "report"])
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--size", choices=words.SIZES, default="gpu")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--resume", type=Path, default=None)
    args = parser.parse_args()
    if args.what == "report":
        return report(args.out)
    size = words.QUICK if args.quick else words.SIZES[args.size]
    if args.what == "encode":
        return encode(args.data, size)
    if args.data is None:
        sys.exit("bases.py run wants --data FILE, made by bases.py encode --data FILE")
    print(measure(args.parts.split(","), args.device, args.jobs, torch.load(args.data, weights_only=True), size, args.quick, args.out, args.resume))
    return None


if __name__ == "__main__":
    main()
