"""How weights are trained: a tiny Llama from scratch, and one that is adapted to another text, by many update rules.

    python benchmarks/dynamics.py run [--tasks pretrain,finetune] [--contenders adamw,galore,...] [--jobs 2] [--quick] [--out DIR]
    (what the day's record has already is not run again: an interrupted run goes on)
    python benchmarks/dynamics.py merge A.json B.json   # one record of runs that were made apart, alike but in their contenders
    python benchmarks/dynamics.py report                # docs/dynamics.md and its pictures, from the records

pretrain: a Llama of 1.4 M parameters over bytes, from scratch, on the Python language reference as CPython ships it
(pydoc_data.topics, English). finetune: the same Llama, trained on that text by this script (once; it is kept under
$DELTAW_CACHE and named by a hash of everything it was made from), adapted to Python code (the top modules of the standard
library). Of every ten blocks of 4,096 bytes one is held out for validation and one for the test.

Each contender gets the same ladder of learning rates, of which the one with the lowest validation loss after a whole run with seed 0
counts; while that is an end of the ladder, one more rung is tried there, to twelve in all. At this rate it is trained with other seeds (a seed
is the start of the model and the order of its data, the same for all contenders), and the loss on the test part is what is compared, after
equally many steps on equally many tokens. Intervals are 95 % t-intervals over seeds; contenders are compared by the differences
seed by seed. All runs are of one thread: losses do not depend on what else is running. Seconds of a step are of the processor, not
of the clock; they still depend on what shares its caches (the load is noted).
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import datetime
import functools
import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

for _name, _value in (("HF_HUB_OFFLINE", "1"), ("TOKENIZERS_PARALLELISM", "false"), ("OMP_NUM_THREADS", "1")):
    os.environ.setdefault(_name, _value)

import torch
from torch import Tensor, nn

import deltaw
from deltaw.bench.interval import interval
from deltaw.bench.ladder import next_rung
from deltaw.bench.record import put
from deltaw.demo.machine import load_average, machine, versions
from deltaw.methods.init import INITS
from deltaw.methods.update import UPDATES
from deltaw.methods.update.algebra.kls import KlsOptimizer
from deltaw.report.charts import WIDTH, text, ticks
from deltaw.report.html import Safe, join, tag
from deltaw.spec import METHODS, RULES
from deltaw.testing.updates import leaves

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results", HERE.parent / "docs" / "dynamics.md"
CACHE = Path(
    os.environ.get("DELTAW_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "deltaw"
)
MODEL = {
    "vocab_size": 256, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 256, "tie_word_embeddings": False, "initializer_range": 0.05,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
REST = [
    "embed_tokens",
    "lm_head",
    "norm",
    "input_layernorm",
    "post_attention_layernorm",
]  # trained in full beside an adapter, from scratch
BLOCK = 4096  # bytes
RUNGS = 12  # to which a ladder grows while its best rate is at an end


@dataclasses.dataclass(frozen=True)
class Size:
    """steps of `batch` windows of `length` bytes; `validation` and `test` windows; sizes of the contenders (r, every)."""

    steps: int
    batch: int
    length: int
    validation: int
    test: int
    looks: int  # how often the validation loss is taken on the way
    r: int
    every: int
    rates: tuple[float, ...]
    seeds: tuple[int, ...] = (1, 2, 3)


SIZES = {
    "pretrain": Size(160, 8, 128, 48, 160, 8, 32, 40, (1e-3, 3.16e-3, 1e-2)),
    "finetune": Size(120, 8, 128, 48, 160, 8, 8, 40, (1e-3, 3.16e-3, 1e-2)),
    "base": Size(600, 8, 128, 48, 160, 4, 0, 0, (3.16e-3,)),
}
QUICK = {
    "pretrain": Size(4, 2, 32, 2, 2, 2, 4, 2, (1e-3,), (1, 2)),
    "finetune": Size(4, 2, 32, 2, 2, 2, 4, 2, (1e-3,), (1, 2)),
    "base": Size(3, 2, 32, 2, 2, 2, 0, 0, (3.16e-3,)),
}


def whole(update: Any, **kw: Any) -> dict[str, Any]:
    """All weights of the model, by an update rule; projections=True: those that adapters are put on, the others stay."""
    return {"kind": "whole", "update": update, **kw}


def adapter(method: Any, **plan: Any) -> dict[str, Any]:
    """A plan: method, init, update, rules."""
    return {"kind": "adapter", "plan": {"method": method, **plan}}


LORA = {
    "key": "lora",
    "alpha": 32.0,
}  # r is filled in from the task's size, as every `r`, `every` and `restart_warmup` that is left open
CONTENDERS: dict[str, dict[str, dict[str, Any]]] = {
    "pretrain": {
        "adamw": whole("adamw"),
        **{k: whole(k) for k in ("galore", "galore2", "fira", "frugal", "flora", "sara", "apollo", "ldadam", "gradnormlorp")},
        "galore_plus": whole({"key": "galore_plus", "heads": 4, "kv_heads": 4, "warmup": 20}),
        "osd": whole({"key": "osd", "rate": 1 / 40}),
        "badam": whole({"key": "badam", "every": 10}),
        "lora": adapter(LORA),
        "relora": adapter(LORA, rules=["relora"]),
        "switchlora": adapter(LORA, rules=[{"key": "switchlora", "every": 10, "decay": 160}]),
        "periodic_lora": adapter(LORA, rules=["periodic_lora"]),
        "low_rank": adapter({"key": "low_rank", "alpha": 32.0}),
        "lowrank_refactor": adapter({"key": "low_rank", "alpha": 32.0}, rules=["lowrank_refactor"]),
        "sltrain": adapter({"key": "sltrain", "alpha": 32.0}),
        "sst": adapter({"key": "sst", "every": 20, "warmup": 4}),
        "trp": adapter({"key": "trp", "energy": 0.99, "every": 20}),
        "dlrt": adapter({"key": "dlrt", "r_max": 32}, update={"key": "dlrt", "inner": "adam", "theta": 0.03}),
    },
    "finetune": {
        "adamw": whole("adamw"),
        "galore": whole("galore"),
        "lora": adapter(LORA),
        **{k: adapter(LORA, init=k) for k in ("pissa", "olora", "lora_ga", "gora", "eva", "corda")},
        "lora_xs": adapter({"key": "lora_xs", "alpha": 8.0}),
        "lora_sb": adapter({"key": "lora_xs", "alpha": 8.0}, init="lora_sb"),
        **{k: adapter(LORA, update=k) for k in ("lora_plus", "riemannian_lora", "lora_pro", "altlora", "altlora_plus", "loft", "allora")},
        "hd_pissa": whole({"key": "hd_pissa", "workers": 4}, projections=True),
        "lora_fa": adapter({"key": "lora_fa", "alpha": 32.0}),
    },
}  # fmt: skip
# (X, Y, what its paper says of X): X against Y. All claims are "a lower loss than Y at equal steps"
QUESTIONS: dict[str, dict[str, list[tuple[str, str]]]] = {
    "pretrain": {
        "Low-rank optimisers against AdamW on all weights": [(k, "adamw") for k in ("galore", "galore2", "galore_plus", "fira", "frugal", "flora", "osd", "sara", "badam", "apollo", "ldadam", "gradnormlorp")],
        "Low-rank optimisers against LoRA": [(k, "lora") for k in ("galore", "galore2", "galore_plus", "fira", "frugal", "flora", "osd", "sara", "badam", "apollo", "ldadam", "gradnormlorp")],
        "GaLore's successors against GaLore": [(k, "galore") for k in ("galore2", "galore_plus", "fira", "frugal", "osd", "sara", "ldadam", "gradnormlorp")],
        "Restarts against plain LoRA": [(k, "lora") for k in ("relora", "switchlora", "periodic_lora")],
        "Structures for pretraining": [("sltrain", "low_rank"), ("lowrank_refactor", "low_rank"), ("sst", "relora"), ("sst", "lora"), ("dlrt", "low_rank"), ("sltrain", "adamw"), ("sst", "adamw"), ("trp", "adamw")],
    },
    "finetune": {
        "Initialisations against LoRA": [(k, "lora") for k in ("pissa", "olora", "lora_ga", "gora", "eva", "corda")] + [("lora_sb", "lora_xs"), ("lora_sb", "lora")],
        "Adapter optimisers against AdamW on LoRA": [(k, "lora") for k in ("lora_plus", "riemannian_lora", "lora_pro", "altlora", "altlora_plus", "loft", "allora", "lora_fa", "hd_pissa")],
        "All weights": [("adamw", "lora"), ("galore", "lora")],
    },
}  # fmt: skip


# ---- texts


@functools.cache
def documents(task: str) -> dict[str, bytes]:
    """Name -> text, in a fixed order."""
    if task == "finetune":
        folder = Path(sysconfig.get_paths()["stdlib"])
        return {p.name: p.read_bytes() for p in sorted(folder.glob("*.py"))}
    from pydoc_data.topics import topics

    return {k: topics[k].encode() for k in sorted(topics)}


def parts(task: str) -> dict[str, Tensor]:
    """train, validation, test: blocks 0-7, 8 and 9 of every ten blocks of the text (documents are ended by a zero byte)."""
    whole_ = b"".join(document + b"\0" for document in documents(task).values())
    joined = {"train": bytearray(), "validation": bytearray(), "test": bytearray()}
    for i in range(0, len(whole_), BLOCK):
        joined[{8: "validation", 9: "test"}.get(i // BLOCK % 10, "train")] += whole_[i : i + BLOCK]
    return {k: torch.frombuffer(v, dtype=torch.uint8) for k, v in joined.items()}


def digest(task: str) -> str:
    return hashlib.sha256(b"\0".join(k.encode() + b"\0" + v for k, v in documents(task).items())).hexdigest()[:16]


class Text:
    """Batches of windows: drawn from a seed for training, evenly spaced for scores."""

    def __init__(self, task: str, size: Size):
        self.part, self.size = parts(task), size

    def batch(self, random: torch.Generator) -> Tensor:
        train, length = self.part["train"], self.size.length + 1
        at = torch.randint(len(train) - length, (self.size.batch,), generator=random)
        return torch.stack([train[i : i + length] for i in at.tolist()]).long()

    def windows(self, part: str, count: int) -> Tensor:
        data, length = self.part[part], self.size.length + 1
        at = torch.linspace(0, len(data) - length, count).long()
        return torch.stack([data[i : i + length] for i in at.tolist()]).long()


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    """Nats per byte."""
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


@torch.no_grad()
def score(model: nn.Module, windows: Tensor) -> float:
    model.eval()
    found = [float(loss_of(model, part)) * len(part) for part in windows.split(16)]
    model.train()
    return sum(found) / len(windows)


def fresh(seed: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**MODEL)).train()


# ---- the base of finetune


def base_key(size: Size) -> str:
    made_of = {"model": MODEL, "size": dataclasses.asdict(size), "text": digest("pretrain"), "torch": torch.__version__}
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]


def weights_hash(model: nn.Module) -> str:
    h = hashlib.sha256()
    for name, t in sorted(model.state_dict().items()):
        h.update(name.encode() + t.detach().contiguous().numpy().tobytes())
    return h.hexdigest()[:16]


def base(size: Size) -> Any:
    """The Llama that is adapted, trained here if it is not there yet."""
    from safetensors.torch import load_file, save_file

    path, model = CACHE / f"dynamics-base-{base_key(size)}.safetensors", fresh(0)
    if path.exists():
        model.load_state_dict(load_file(path))
        return model
    run = train(model, whole("adamw"), Text("pretrain", size), size, size.rates[0], 0)
    if run["test"] is None:
        raise SystemExit("the base of finetune diverged: nothing can be adapted")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        save_file({k: v.detach().contiguous() for k, v in model.state_dict().items()}, file.name)
    os.replace(file.name, path)
    return model


# ---- contenders


def missing(config: dict[str, Any]) -> list[str]:
    """The keys of a contender that this version of the library does not have."""
    plan = config.get("plan", {})
    asked = [
        (UPDATES, config.get("update", plan.get("update"))),
        (METHODS, plan.get("method")),
        (INITS, plan.get("init")),
    ]
    asked += [(RULES, r) for r in plan.get("rules", ())]
    keys = [(registry, c if isinstance(c, str) else c["key"]) for registry, c in asked if c is not None]
    return [f"{registry.what} {key}" for registry, key in keys if key not in registry]


def sized(config: Any, registry: Any, size: Size) -> Any:
    """A key or a configuration with this task's rank and period where they are left open and the class has such fields."""
    config = {"key": config} if isinstance(config, str) else config
    names = {f.name for f in dataclasses.fields(registry[config["key"]])}
    fitting = {"r": size.r, "every": size.every, "restart_warmup": size.every // 6}
    return {**{k: v for k, v in fitting.items() if k in names and v}, **config}


def settled(config: dict[str, Any], task: str, size: Size) -> dict[str, Any]:
    """The contender as it is run, with everything that was filled in."""
    if config["kind"] == "whole":
        return {**config, "update": sized(config["update"], UPDATES, size)}
    plan = dict(config["plan"])
    for name, registry in (("method", METHODS), ("init", INITS), ("update", UPDATES)):
        if name in plan:
            plan[name] = sized(plan[name], registry, size)
    plan["rules"] = [sized(r, RULES, size) for r in plan.get("rules", ())]
    plan["targets"] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    if task == "pretrain":
        plan["train_modules"] = REST
    return {**config, "plan": plan}


def put_on(
    model: Any, config: dict[str, Any], rate: float, seed: int, text: Text
) -> tuple[torch.optim.Optimizer, list[nn.Parameter]]:
    """The contender's optimiser over a model, and what it trains."""
    if config["kind"] == "whole":
        for name, p in model.named_parameters():
            p.requires_grad_(not config.get("projections") or "_proj." in name)
        optimizer = deltaw.optimizer(model, config["update"], rate)
        return optimizer, [p for p in model.parameters() if p.requires_grad]
    plan = deltaw.Plan.from_dict({**config["plan"], "seed": seed})
    adapted = attached(model, plan, seed, text)
    return adapted.optimizer(rate), list(adapted.trainable().values())


def attached(model: Any, plan: Any, seed: int, text: Text) -> Any:
    """Attach; an init that looks at gradients or inputs sees eight batches of the training text, other ones than the training."""
    if plan.init is None or plan.init.needs <= {"weight"}:
        return deltaw.attach(model, plan)
    random = torch.Generator().manual_seed(seed + 10_000)
    batches = [{"input_ids": ids, "labels": ids} for ids in (text.batch(random) for _ in range(8))]
    return deltaw.attach(model, plan, stats=deltaw.probe(model, batches, plan))


def rate_at(step: int, steps: int) -> float:
    """Linear warm-up over a twentieth of the steps, then linear decay to 0."""
    warm = max(1, steps // 20)
    return min((step + 1) / warm, (steps - step) / (steps - warm + 1))


def train(model: Any, config: dict[str, Any], text: Text, size: Size, rate: float, seed: int) -> dict[str, Any]:
    """One run. A loss that is not finite, or far above the first, ends it: losses are None then."""
    optimizer, trained = put_on(model, config, rate, seed, text)
    twice = isinstance(optimizer, KlsOptimizer)  # it needs the gradient twice a step
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: rate_at(k, size.steps))
    random, validation = torch.Generator().manual_seed(seed + 1), text.windows("validation", size.validation)
    few = validation[:: max(1, len(validation) // 16)]
    seconds, cpu, curve, first = list[float](), list[float](), [(0, score(model, few))], math.inf
    for step in range(size.steps):
        batch = text.batch(random)
        began, busy = time.perf_counter(), time.process_time()

        def forward_backward() -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            found = loss_of(model, batch)  # noqa: B023
            found.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            return found.detach()

        if twice:
            loss = float(optimizer.step(forward_backward))
        else:
            loss = float(forward_backward())
            optimizer.step()
        schedule.step()
        seconds.append(time.perf_counter() - began)
        cpu.append(time.process_time() - busy)
        first = min(first, loss) if step else loss
        if not loss < 3 * first + 3:
            break
        if (step + 1) % max(1, size.steps // size.looks) == 0:
            curve.append((step + 1, score(model, few)))
    done = len(seconds) == size.steps and math.isfinite(loss)
    state = optimizer.state_dict()
    kept = {
        id(t): t for t in leaves({"state": state["state"], "rules": state.get("rules", {})}) if isinstance(t, Tensor)
    }.values()
    last = score(model, validation) if done else math.inf
    return {
        "rate": rate, "seed": seed, "validation": finite(last), "test": finite(score(model, text.windows("test", size.test))) if done else None,
        "curve": [(k, finite(v)) for k, v in curve], "step_seconds": statistics.median(seconds), "step_cpu_seconds": statistics.median(cpu),
        "state_bytes": sum(t.numel() * t.element_size() for t in kept), "trained": sum(p.numel() for p in trained),
        "steps": len(seconds),
    }  # fmt: skip


def finite(v: float) -> float | None:
    return v if math.isfinite(v) else None


# ---- runs


def one(task: str, config: dict[str, Any], size: Size, basis: Size, rate: float, seed: int) -> dict[str, Any]:
    return train(base(basis) if task == "finetune" else fresh(seed), config, Text(task, size), size, rate, seed)


def climb(run: Any, rates: tuple[float, ...], most: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Runs over the ladder, longer at the end where the best one is; (all, best)."""
    runs = [run(rate) for rate in rates]
    while rate := next_rung({r["rate"]: r["validation"] for r in runs}, most):
        runs.append(run(rate))
    return runs, min(runs, key=lambda r: math.inf if r["validation"] is None else float(r["validation"]))


def child(task: str, name: str, quick: bool, seeds: int) -> None:
    """Everything of one contender, as one line of JSON."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    sizes = QUICK if quick else SIZES
    size = dataclasses.replace(sizes[task], seeds=tuple(range(1, seeds + 1)))
    config = settled(CONTENDERS[task][name], task, size)
    before = load_average()
    go = functools.partial(one, task, config, size, sizes["base"])
    tuning, best = climb(lambda rate: go(rate, 0), size.rates, 1 if quick else RUNGS)
    ends = min(r["rate"] for r in tuning), max(r["rate"] for r in tuning)
    runs = [] if best["validation"] is None else [go(best["rate"], seed) for seed in size.seeds]
    print(json.dumps({
        "config": config, "tuning": tuning, "rate": best["rate"], "at_the_end": best["rate"] in ends, "runs": runs,
        "load_before": before, "load_after": load_average(),
    }))  # fmt: skip


def measure(task: str, names: list[str], quick: bool, seeds: int, jobs: int, out: Path) -> Path:
    sizes = QUICK if quick else SIZES
    today = datetime.date.today().isoformat()
    path = out / f"dynamics-{task}-{today}.json"
    record: dict[str, Any] = {
        "what": "dynamics", "task": task, "date": today, "quick": quick, "seeds": list(range(1, seeds + 1)), "model": MODEL,
        "size": dataclasses.asdict(dataclasses.replace(sizes[task], seeds=tuple(range(1, seeds + 1)))), "text": digest(task),
        "bytes": {k: len(v) for k, v in parts(task).items()}, "base": None, "machine": machine(), "versions": versions(), "threads": 1,
        "sessions": [], "contenders": {}, "skipped": {},
    }  # fmt: skip
    if task == "finetune":
        torch.set_num_threads(1)
        made = base(sizes["base"])
        text_ = Text(task, sizes[task])
        record["base"] = {
            "key": base_key(sizes["base"]), "weights": weights_hash(made), "size": dataclasses.asdict(sizes["base"]),
            "test": score(made, text_.windows("test", sizes[task].test)),
            "test_english": score(made, Text("pretrain", sizes["base"]).windows("test", sizes["base"].test)),
        }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    if path.exists():
        old = json.loads(path.read_text())
        if odd := differing(json.loads(json.dumps(record)), old):
            raise SystemExit(f"{path} was made with another {', '.join(odd)}: move it away, or use --out")
        record |= {k: old[k] for k in OWN}
    names = [n for n in names if n not in record["contenders"]]
    session = {"date": today, "jobs": jobs, "load_before": load_average(), "load_after": None, "contenders": names}
    record["sessions"].append(session)
    lock = threading.Lock()

    def write() -> None:
        session["load_after"] = load_average()
        put(record, path)

    def contend(name: str) -> None:
        if lacks := missing(CONTENDERS[task][name]):
            note: Any = f"not in this version: {', '.join(lacks)}"
        else:
            order = [
                sys.executable,
                __file__,
                "child",
                task,
                name,
                "--seeds",
                str(seeds),
                *(["--quick"] if quick else []),
            ]
            done = subprocess.run(order, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            lines = done.stderr.strip().splitlines() or ["(nothing was said)"]
            note = f"failed: {lines[-1][:300]}" if done.returncode else json.loads(done.stdout.strip().splitlines()[-1])
        with lock:
            record["skipped"].pop(name, None)
            record["skipped" if isinstance(note, str) else "contenders"][name] = note
            print(f"{task:9s} {name:17s} {note if isinstance(note, str) else summary(note)}", flush=True)
            write()

    write()
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        list(pool.map(contend, names))
    return path


OWN = ("contenders", "skipped", "date", "sessions")  # in which records that can be merged may differ


def differing(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """What of two records does not agree; of the machine the processor counts, not its kernel or how much memory it lends."""

    def of(record: dict[str, Any], k: str) -> Any:
        found = record.get(k)
        return {w: found.get(w) for w in ("cpu", "cores", "cpu_capability")} if k == "machine" and found else found

    return sorted(k for k in (a.keys() | b.keys()) - set(OWN) if of(a, k) != of(b, k))


def summary(found: dict[str, Any]) -> str:
    values = losses(found)
    return f"rate {found['rate']:<8g} " + (
        f"test perplexity {math.exp(statistics.fmean(values)):.4f}" if values else "diverged"
    )


def merged(paths: list[Path], out: Path = RESULTS) -> Path:
    """One record out of several of the same task; a contender counts where it stands first."""
    records = [json.loads(p.read_text()) for p in paths]
    first = records[0]
    for path, record in zip(paths, records):
        if odd := differing(record, first):
            raise SystemExit(f"{path} differs from {paths[0]} in {', '.join(odd)}")
    whole_ = {
        **first,
        "date": datetime.date.today().isoformat(),
        "contenders": {},
        "skipped": {},
        "sessions": sum((r["sessions"] for r in records), []),
    }
    for word in ("contenders", "skipped"):
        for record in records:
            for name, found in record[word].items():
                if name not in whole_["contenders"]:
                    whole_[word].setdefault(name, found)
    path = out / f"dynamics-{first['task']}-{whole_['date']}.json"
    path.write_text(json.dumps(whole_, indent=1) + "\n")
    return path


# ---- the page


def losses(found: dict[str, Any]) -> list[float]:
    """Test losses by seed; none if one of the runs diverged."""
    values = [r["test"] for r in found["runs"]]
    return values if values and all(v is not None for v in values) else []


def early(found: dict[str, Any]) -> list[float]:
    """Validation losses after a quarter of the steps, by seed."""
    values = [next((v for k, v in r["curve"] if 4 * k >= r["steps"]), None) for r in found["runs"]]
    return [v for v in values if v is not None] if all(v is not None for v in values) else []


def against(x: list[float], y: list[float]) -> tuple[float, float, str]:
    """Mean difference x - y seed by seed, half width of its interval, and what that says of "x is lower"."""
    d, half = interval([a - b for a, b in zip(x, y, strict=True)])
    return (
        d,
        half,
        "shows" if d + half < 0 else "does not show (the reverse is seen)" if d - half > 0 else "not decided",
    )


def compared(record: dict[str, Any], pairs: list[tuple[str, str]]) -> list[str]:
    rows = [
        "| X against Y | test loss, X - Y (95 %) | after a quarter of the steps | X has a lower loss than Y |",
        "|---|---:|---:|---|",
    ]
    have = record["contenders"]
    for a, b in pairs:
        if a not in have or b not in have:
            continue
        x, y = losses(have[a]), losses(have[b])
        if not x or not y:
            rows.append(f"| {a} against {b} | | | {', '.join(n for n, v in ((a, x), (b, y)) if not v)} diverged |")
            continue
        d, half, verdict = against(x, y)
        ex, ey = early(have[a]), early(have[b])
        soon = "" if not ex or not ey else "{:+.4f} ± {:.4f}".format(*against(ex, ey)[:2])
        rows.append(f"| {a} against {b} | {d:+.4f} ± {half:.4f} | {soon} | {verdict} |")
    return rows if len(rows) > 2 else []


def table(record: dict[str, Any]) -> list[str]:
    rows = [
        "| contender | what it is | rate | test perplexity (95 %) | test loss | seconds a step | optimiser state | trained |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, found in sorted(
        record["contenders"].items(), key=lambda kv: statistics.fmean(losses(kv[1]) or [math.inf])
    ):
        values, runs = losses(found), found["runs"] or found["tuning"]
        if values:
            m, half = interval(values)
            p, ph = interval([math.exp(v) for v in values])
            loss = (f"{p:.4f} ± {ph:.4f}", f"{m:.4f} ± {half:.4f}")
        else:
            loss = ("diverged", "")
        end = " (end of the ladder: a better one may follow)" if found["at_the_end"] else ""
        rows.append(
            f"| {name} | {words(found['config'])} | {found['rate']:g}{end} | {loss[0]} | {loss[1]} | "
            f"{statistics.median(r['step_cpu_seconds'] for r in runs):.3f} | {runs[0]['state_bytes'] / 1e6:.2f} MB | {runs[0]['trained']:,} |"
        )
    return rows


def words(config: dict[str, Any]) -> str:
    """A configuration in a cell: update(r=32), or method + init + update + rules."""

    def say(c: Any) -> str:
        return f"{c['key']}({', '.join(f'{k}={v:g}' if isinstance(v, float) else f'{k}={v}' for k, v in c.items() if k != 'key')})".replace(
            "()", ""
        )

    if config["kind"] == "whole":
        return f"all {'projections' if config.get('projections') else 'weights'}, {say(config['update'])}"
    plan = config["plan"]
    return " + ".join(say(c) for c in (plan["method"], plan.get("init"), plan.get("update"), *plan["rules"]) if c)


STYLE = """
svg { --ink: #1c1f23; --soft: #5d6570; --rule: #dfe2e6; }
@media (prefers-color-scheme: dark) { svg { --ink: #e6e8ea; --soft: #9aa4af; --rule: #343a41; } }
text { fill: var(--soft); font: 12px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
.strong { fill: var(--ink); font-weight: 600; } .rule { stroke: var(--rule); } polyline { fill: none; stroke-width: 1.5; }
"""


def mean_curve(found: dict[str, Any]) -> list[tuple[int, float]]:
    """Mean validation loss over the seeds, by step."""
    runs = found["runs"]
    if not losses(found):
        return []
    return [(k, statistics.fmean(r["curve"][i][1] for r in runs)) for i, (k, _) in enumerate(runs[0]["curve"])]


def picture(record: dict[str, Any]) -> str:
    """Validation loss over steps, one line a contender, names at the right in the order of the last values."""
    curves = {name: c for name, found in record["contenders"].items() if (c := mean_curve(found))}
    left, right, top, floor = 44.0, WIDTH - 150.0, 26.0, 26.0 + 380.0
    body: list[Any] = [
        tag("style", Safe(STYLE)),
        text(0, 14, "validation loss (nats per byte) over steps", class_="strong"),
    ]
    seen = {n: [p for p in c if p[0] > 0] for n, c in curves.items()}
    values = sorted(v for c in seen.values() for _, v in c)
    if values:
        low, high, last = values[0], values[int(0.98 * (len(values) - 1))], max(k for c in seen.values() for k, _ in c)
        high = max(high, low + 1e-6)

        def at(k: float, v: float) -> tuple[float, float]:
            return left + (right - left) * k / last, floor - (floor - top) * (min(v, high) - low) / (high - low)

        for v in ticks(low, high):
            h = at(0, v)[1]
            body += [
                tag("line", x1=left, x2=right, y1=f"{h:.1f}", y2=f"{h:.1f}", class_="rule"),
                text(left - 6, h + 4, f"{v:g}", "end"),
            ]
        body += [text(at(v, low)[0], floor + 16, f"{v:g}", "middle") for v in ticks(0, last, 6)]
        place = top - 13
        for i, (name, curve) in enumerate(sorted(seen.items(), key=lambda kv: -kv[1][-1][1])):
            colour = f"hsl({(i * 137.5) % 360:.0f} 62% 48%)"
            line = " ".join("{:.1f},{:.1f}".format(*at(k, v)) for k, v in curve)
            place += 13
            body += [
                tag("polyline", tag("title", f"{name}: {curve[-1][1]:.4f}"), points=line, stroke=colour),
                tag("line", x1=right + 8, x2=right + 22, y1=place, y2=place, stroke=colour, stroke_width=3),
                text(right + 28, place + 4, name),
            ]
    height = max(floor + 30, top + 13.0 * (len(seen) + 2))
    size = {"viewBox": f"0 0 {WIDTH} {height:g}", "width": WIDTH, "height": f"{height:g}"}
    return (
        str(
            tag(
                "svg",
                join(body),
                xmlns="http://www.w3.org/2000/svg",
                role="img",
                aria_label=f"loss over steps, {record['task']}",
                **size,
            )
        )
        + "\n"
    )


def made(record: dict[str, Any]) -> str:
    return "; ".join(
        f"{s['date']}, {s['jobs']} at a time, load {s['load_before']} before and {s['load_after']} after"
        for s in record["sessions"]
    )


def section(record: dict[str, Any], image: str, source: str) -> list[str]:
    size, base_ = record["size"], record["base"]
    out = [
        f"## {record['task']}", "",
        f"{size['steps']} steps of {size['batch']} x {size['length']} bytes; {record['bytes']['train']:,} bytes of training text (digest {record['text']}); "
        f"ladder {', '.join(f'{r:g}' for r in size['rates'])}; seeds {', '.join(map(str, record['seeds']))}; r = {size['r']}, period {size['every']} where a "
        f"contender has one; {record['machine']['cpu']}, one thread, torch {record['versions']['torch']}; {made(record)}.", "",
    ]  # fmt: skip
    if base_:
        out += [
            f"The base (weights {base_['weights']}) has a test loss of {base_['test_english']:.4f} on its own text and {base_['test']:.4f} on the new one.",
            "",
        ]
    out += [*table(record), "", f"![validation loss over steps]({image})", ""]
    for question, pairs in QUESTIONS[record["task"]].items():
        if rows := compared(record, pairs):
            out += [f"### {question}", "", *rows, ""]
    if record["skipped"]:
        out += ["Not run: " + "; ".join(f"{k} ({v})" for k, v in record["skipped"].items()) + ".", ""]
    return out + [f"Record: [{Path(source).name}]({source})", ""]


def report(results: Path = RESULTS, page: Path = PAGE) -> None:
    lines = [
        "# Dynamics",
        "",
        "<!-- generated by `python benchmarks/dynamics.py report` from the records; edit nothing here -->",
        "",
    ]
    for paragraph in (__doc__ or "").split("\n\n")[2:]:
        lines += [*paragraph.strip().splitlines(), ""]
    lines += [
        '"Shows": the whole interval of the difference is below 0. "Does not show": it is above 0. "Not decided": 0 is inside.',
        "",
    ]
    for task in CONTENDERS:
        found = sorted(results.glob(f"dynamics-{task}-*.json"))
        if not found:
            lines += [f"## {task}", "", f"No record yet: `python benchmarks/dynamics.py run --tasks {task}`.", ""]
            continue
        for path in found[::-1]:  # further records have other contenders, from other machines: nothing is compared across two
            record = json.loads(path.read_text())
            image = page.parent / "benchmarks" / f"dynamics-{task}{'' if path == found[-1] else f'-{path.stem}'}.svg"
            image.parent.mkdir(parents=True, exist_ok=True)
            image.write_text(picture(record), encoding="utf-8")
            lines += section(record, f"benchmarks/{image.name}", os.path.relpath(path, page.parent))
    page.write_text("\n".join(lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    run = what.add_parser("run")
    run.add_argument("--tasks", default=",".join(CONTENDERS))
    run.add_argument("--contenders", help="names; all of the task by default")
    run.add_argument("--jobs", type=int, default=1, help="contenders at a time, one thread each")
    run.add_argument("--out", type=Path, default=RESULTS)
    inner = what.add_parser("child")
    inner.add_argument("task")
    inner.add_argument("contender")
    for p in (run, inner):
        p.add_argument("--quick", action="store_true", help="a few steps: shows that it runs")
        p.add_argument("--seeds", type=int, default=3)
    what.add_parser("report")
    what.add_parser("merge").add_argument("records", type=Path, nargs="+")
    args = parser.parse_args()
    if args.what == "report":
        report()
    elif args.what == "child":
        child(args.task, args.contender, args.quick, args.seeds)
    elif args.what == "merge":
        print(merged(args.records))
    else:
        tasks = args.tasks.split(",")
        if odd := [t for t in tasks if t not in CONTENDERS]:
            raise SystemExit(f"no task '{odd[0]}' here; there are {', '.join(CONTENDERS)}")
        chosen = args.contenders.split(",") if args.contenders else None
        if odd := [c for c in chosen or () if not any(c in CONTENDERS[t] for t in tasks)]:
            raise SystemExit(
                f"no contender '{odd[0]}' in {', '.join(tasks)}; there are {', '.join(k for t in tasks for k in CONTENDERS[t])}"
            )
        for task in tasks:
            names = [n for n in chosen or CONTENDERS[task] if n in CONTENDERS[task]]
            print(measure(task, names, args.quick, args.seeds, args.jobs, args.out))


if __name__ == "__main__":
    main()
