"""Training without gradients against gradients, per forward pass: EGGROLL and ESSA beside LoRA on one small real task.

    python benchmarks/evolution.py run [--signals loss,reward] [--contenders ...] [--seeds 3] [--quick] [--out DIR]
    python benchmarks/evolution.py report [RECORD]        # the record as tables; without one docs/evolution.md, from the newest

Task: a small network reads scikit-learn's 8 x 8 handwritten digits; it is to read their mirror images. All contenders begin with one LoRA of rank 4 that
a few gradient steps on the likelihood have warmed up, as ESSA has to; its rows are not counted. signal "loss": the score
is the log-likelihood of the right digit, and the gradient is of the same. signal "reward": the score is 1 for a right answer and 0 for a
wrong one; ES scores the network's first choice, the gradient is REINFORCE's with the mean of 8 sampled answers per image as baseline.

Contenders: lora (the factors, Adam on gradients), eggroll (the network's own matrices, the warm LoRA merged), eggroll_lora (the factors), essa (their
singular values). What is counted are rows run forwards, all members together; a gradient's backward pass costs
about two more of them, which the table says and the marks do not. Each contender has three rates: Adam's, the same for all three; for ESSA, which has
none, its first step size. The rate with the best mean validation score at the last mark counts, and is scored on test images that chose nothing.
lora stops at a quarter of the rows. Record: benchmarks/results/evolution-DATE.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor, nn

import deltaw
from deltaw.bench.interval import interval
from deltaw.bench.record import put
from deltaw.demo.machine import load_average, machine, versions
from deltaw.evolve import Eggroll, Essa
from deltaw.evolve.loop import Search

RESULTS = Path(__file__).parent / "results"
PAGE = RESULTS.parent.parent / "docs" / "evolution.md"
RATES = (1e-3, 5e-3, 2.5e-2)
STEPS = (0.03, 0.1, 0.3)  # ESSA's first step sizes, shares of the largest singular value
SIGNALS = ("loss", "reward")
CONTENDERS = ("lora", "eggroll", "eggroll_lora", "essa")
MARKS = (2_048, 8_192, 32_768, 131_072, 524_288)
ROWS, MEMBERS, SIGMA, WARM, SAMPLES, RANK = 32, 64, 0.05, 16, 8, 4


class Task:
    """The network that reads digits, and mirrored ones in three parts."""

    def __init__(self) -> None:
        import sklearn.datasets

        data = sklearn.datasets.load_digits()
        x = torch.tensor(data.images, dtype=torch.float32) / 16
        y = torch.tensor(data.target)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(7))
        x, y = x[order], y[order]
        torch.manual_seed(0)
        self.base = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        optimizer = torch.optim.Adam(self.base.parameters(), lr=3e-3)
        for k in range(600):
            at = torch.randint(0, 1000, (64,), generator=torch.Generator().manual_seed(k))
            optimizer.zero_grad()
            nn.functional.cross_entropy(self.base(x[at].flatten(1)), y[at], label_smoothing=0.1).backward()
            optimizer.step()
        self.parts = {"train": slice(0, 1000), "validation": slice(1000, 1400), "test": slice(1400, None)}
        self.upright = self.score(self.base, x[1400:].flatten(1), y[1400:])
        self.x, self.y = x.flip(2).flatten(1), y

    def batch(self, seed: int, step: int) -> dict[str, Tensor]:
        g = torch.Generator().manual_seed(1_000_003 * seed + step)
        at = torch.randint(0, 1000, (ROWS,), generator=g)
        return {"x": self.x[at], "y": self.y[at]}

    def network(self) -> nn.Sequential:
        made = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        made.load_state_dict(self.base.state_dict())
        return made

    @torch.no_grad()
    def score(self, net: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
        logits = net(x)
        return {
            "loss": float(nn.functional.cross_entropy(logits, y)),
            "accuracy": float((logits.argmax(-1) == y).float().mean()),
        }

    def part(self, net: nn.Module, name: str) -> dict[str, float]:
        return self.score(net, self.x[self.parts[name]], self.y[self.parts[name]])


def fitness(signal: str) -> Any:
    def score(net: nn.Module, rows: dict[str, Tensor]) -> Tensor:
        logits = net(rows["x"])
        if signal == "reward":
            return (logits.argmax(-1) == rows["y"]).to(logits)
        return -nn.functional.cross_entropy(logits, rows["y"], reduction="none")

    return score


def gradient_step(
    net: nn.Module, rows: dict[str, Tensor], signal: str, optimizer: Any, random: torch.Generator
) -> None:
    logits = net(rows["x"])
    if signal == "loss":
        loss = nn.functional.cross_entropy(logits, rows["y"])
    else:
        chosen = torch.multinomial(logits.detach().softmax(-1), SAMPLES, replacement=True, generator=random)
        reward = (chosen == rows["y"][:, None]).to(logits)
        advantage = reward - reward.mean(1, keepdim=True)
        loss = -(advantage * logits.log_softmax(-1).gather(1, chosen)).mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def warmed(task: Task, seed: int) -> tuple[nn.Module, deltaw.Adapted]:
    """The network with the LoRA that everybody begins with."""
    net = task.network()
    plan = deltaw.Plan(deltaw.methods.LoRA(r=RANK, alpha=float(2 * RANK)), targets=["0", "2", "4"], seed=seed)
    adapted = deltaw.attach(net, plan)
    optimizer = adapted.optimizer(lr=RATES[1], weight_decay=0.0)
    for step in range(WARM):
        gradient_step(net, task.batch(seed, step), "loss", optimizer, torch.Generator())
    return net, adapted


def merged(net: nn.Module, adapted: deltaw.Adapted) -> None:
    """The LoRA as part of the network's own matrices."""
    change = {name: (B @ A).detach() for name, (B, A) in adapted.to_lora().factors.items()}
    adapted.detach()
    with torch.no_grad():
        for name, d in change.items():
            net.get_submodule(name).weight.add_(d)


def rows_run(
    task: Task, net: nn.Module, adapted: deltaw.Adapted, name: str, signal: str, rate: float, seed: int
) -> Iterator[int]:
    """Trains, and says after every step how many rows have been run forwards since the last time."""
    step = WARM
    if name == "lora":
        optimizer, random = adapted.optimizer(lr=rate, weight_decay=0.0), torch.Generator().manual_seed(seed)
        while True:
            gradient_step(net, task.batch(seed, step), signal, optimizer, random)
            step += 1
            yield ROWS
    search: Search
    if name == "essa":
        search = Essa(adapted, sigma=rate, population=MEMBERS // 2, seed=seed)
    else:
        what: Any = adapted
        kw: dict[str, Any] = {}
        if name == "eggroll":
            merged(net, adapted)
            what, kw = net, {"targets": ["0", "2", "4"]}
        search = Eggroll(
            what, sigma=SIGMA, population=MEMBERS, seed=seed, optimizer=lambda p: torch.optim.Adam(p, lr=rate), **kw
        )
    while True:
        search.step(task.batch(seed, WARM + search.epoch), fitness(signal))
        if isinstance(search, Essa):
            search.write()
        yield ROWS * search.population


def one(task: Task, name: str, signal: str, rate: float, seed: int, marks: tuple[int, ...]) -> dict[str, Any]:
    net, adapted = warmed(task, seed)
    curve: list[dict[str, Any]] = [
        {"mark": 0, "rows": 0, "seconds": 0.0, **{part: task.part(net, part) for part in ("validation", "test")}}
    ]
    done, seconds = 0, 0.0
    left, going = list(marks[:-1] if name == "lora" else marks), rows_run(task, net, adapted, name, signal, rate, seed)
    began = time.perf_counter()
    while left:
        done += next(going)
        if done >= left[0]:
            seconds += time.perf_counter() - began
            scores = {part: task.part(net, part) for part in ("validation", "test")}
            while left and done >= left[0]:
                curve.append({"mark": left.pop(0), "rows": done, "seconds": seconds, **scores})
            began = time.perf_counter()
    return {"rate": rate, "seed": seed, "curve": curve}


def summary(runs: list[dict[str, Any]], signal: str) -> dict[str, Any]:
    """The rate with the best mean validation score at the last mark, and its test scores at every mark with half-widths."""
    word, sign = ("loss", 1) if signal == "loss" else ("accuracy", -1)
    by_rate: dict[float, list[dict[str, Any]]] = {}
    for r in runs:
        by_rate.setdefault(r["rate"], []).append(r)
    best = min(
        by_rate, key=lambda rate: sign * statistics.mean(r["curve"][-1]["validation"][word] for r in by_rate[rate])
    )
    curve = []
    for k, mark in enumerate(m["mark"] for m in by_rate[best][0]["curve"]):
        line: dict[str, Any] = {"mark": mark}
        for what in ("loss", "accuracy"):
            values = [r["curve"][k]["test"][what] for r in by_rate[best]]
            line[what] = {"mean": statistics.mean(values), "half": half_width(values)}
        curve.append({**line, "seconds": statistics.mean(r["curve"][k]["seconds"] for r in by_rate[best])})
    return {"rate": best, "curve": curve}


def half_width(values: list[float]) -> float | None:
    """Of the 95 % interval of the mean, Student's; None for one value."""
    return interval(values)[1] if len(values) > 1 else None


def measure(signals: list[str], contenders: list[str], seeds: int, quick: bool, out: Path) -> Path:
    began, marks = time.perf_counter(), MARKS[:2] if quick else MARKS
    rates = {name: (STEPS if name == "essa" else RATES)[: 1 if quick else None] for name in contenders}
    today, task = datetime.date.today().isoformat(), Task()
    record: dict[str, Any] = {
        "what": "evolution", "date": today, "quick": quick, "seeds": seeds, "marks": marks, "rates": rates, "machine": machine(),
        "versions": versions(), "threads": torch.get_num_threads(), "load_before": load_average(), "start": {"upright": task.upright, "mirrored": task.part(task.base, "test")},
        "settings": {"rows": ROWS, "members": MEMBERS, "essa_members": MEMBERS // 2, "sigma": SIGMA, "warm_steps": WARM, "samples": SAMPLES, "rank": RANK},
        "runs": {}, "best": {},
    }  # fmt: skip
    for signal in signals:
        for name in contenders:
            runs = [one(task, name, signal, rate, seed, marks) for rate in rates[name] for seed in range(seeds)]
            record["runs"].setdefault(signal, {})[name] = runs
            record["best"].setdefault(signal, {})[name] = best = summary(runs, signal)
            last = best["curve"][-1]
            print(
                f"{signal:7s} {name:13s} rate {best['rate']:<6g} accuracy {last['accuracy']['mean']:.3f} loss {last['loss']['mean']:.3f}",
                flush=True,
            )
    record["load_after"], record["seconds"] = load_average(), time.perf_counter() - began
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"evolution-{today}.json"
    put(record, path)
    return path


def report(record: dict[str, Any]) -> str:
    start = record["start"]
    lines = [
        f"Test accuracy (and loss) after so many rows run forwards, counted from the warm start (0); {record['seeds']} seeds, 95 % intervals. Before it: "
        f"{100 * start['mirrored']['accuracy']:.1f} % ({start['mirrored']['loss']:.2f}) of mirrored digits, {100 * start['upright']['accuracy']:.1f} % of plain ones. "
        "A gradient's backward pass costs about two forwards more, so lora's marks are worth three times as much work.",
        "",
    ]
    for signal, found in record["best"].items():
        marks = [0, *record["marks"]]
        lines += [
            f"| {signal} | rate | " + " | ".join(f"{m:,}" for m in marks) + " | seconds |",
            "|---|---:|" + "---:|" * (len(marks) + 1),
        ]
        for name, best in found.items():
            cells = dict.fromkeys(marks, "")
            for c in best["curve"]:
                half = c["accuracy"]["half"]
                spread = "" if half is None else f" ± {100 * half:.1f}"
                cells[c["mark"]] = f"{100 * c['accuracy']['mean']:.1f}{spread} % ({c['loss']['mean']:.2f})"
            lines.append(
                f"| {name} | {best['rate']:g} | "
                + " | ".join(cells.values())
                + f" | {best['curve'][-1]['seconds']:.1f} |"
            )
        lines.append("")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("--signals", default=",".join(SIGNALS))
    running.add_argument("--contenders", default=",".join(CONTENDERS))
    running.add_argument("--seeds", type=int, default=3)
    running.add_argument("--quick", action="store_true")
    running.add_argument("--out", type=Path, default=RESULTS)
    reporting = commands.add_parser("report")
    reporting.add_argument("record", type=Path, nargs="?")
    args = parser.parse_args(argv)
    if args.command == "run":
        torch.set_num_threads(1)
        for word, known in (("signals", SIGNALS), ("contenders", CONTENDERS)):
            if odd := set(getattr(args, word).split(",")) - set(known):
                raise SystemExit(f"unknown {word}: {', '.join(sorted(odd))}; there are {', '.join(known)}")
        print(measure(args.signals.split(","), args.contenders.split(","), args.seeds, args.quick, args.out))
    else:
        path = args.record or max(RESULTS.glob("evolution-*.json"), default=None)
        if path is None:
            raise SystemExit("no record yet: python benchmarks/evolution.py run")
        found = report(json.loads(path.read_text()))
        if args.record is None:
            head = "# Training without gradients\n\n<!-- generated by `python benchmarks/evolution.py report` -->\n\n"
            told = (__doc__ or "").split("\n\n", 2)[2].rstrip()
            link = f"Record: [{path.name}](../benchmarks/results/{path.name})"
            PAGE.write_text(f"{head}{told}\n\n{found}\n{link}\n")
        print(found)


if __name__ == "__main__":
    main()
