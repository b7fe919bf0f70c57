"""A recipe, carried out."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..attach import Adapted, attach
from ..errors import SpecError, StateMismatch, need
from ..files import load
from ..quantise import coded_bytes
from ..routing import watch_routing
from ..spec import layers_of
from . import checkpoint, host
from .adapting import Adapting, finite
from .base import load_base
from .batches import keeps_rows_apart
from .curves import picture, site_norms
from .data import examples, read_rows
from .encode import Encoded, encode, pack, set_template
from .engine import Engine, held_out
from .generation import pad_id
from .measuring import as_asked, measure
from .progress import Progress, choose
from .recipe import Recipe

OURS = ("recipe.yaml", "metrics.jsonl", "run.json", "curves.svg", "report.html", "adapter")


@dataclass
class RunResult:
    """What a run leaves: the adapter (still attached to its model), the last values of every metric, where it all is."""

    adapted: Adapted
    metrics: dict[str, Any]
    dir: Path
    train_seconds: float
    tokens_per_second: float
    peak_rss_bytes: int
    tokenizer: Any = None
    notes: list[str] = field(default_factory=list)


def run(
    recipe: Recipe | Mapping[str, Any] | str | os.PathLike[str],
    overrides: Sequence[str] = (),
    model: Any = None,
    tokenizer: Any = None,
    resume: bool | str | os.PathLike[str] = False,
    progress: Progress | bool | None = None,
) -> RunResult:
    """Train as the recipe says (from rewards, by GRPO, where it has a section `grpo`) and leave in `out`: recipe.yaml, metrics.jsonl, curves.svg, run.json, adapter/ and the
    last checkpoints.

    model, tokenizer: used instead of the recipe's `model`. resume: True goes on from the newest complete checkpoint in
    `out` (from the start if there is none), a path from that one; the result has the same bits as without the break.
    Without resume, an earlier run in `out` is kept in `out/previous-N`. Under torchrun or accelerate every process calls
    this; the first one writes. Errors: SpecError (recipe, data, model), StateMismatch (a checkpoint of another run).
    """
    r = Recipe.of(recipe, overrides)
    show = choose(progress)
    notes: list[str] = []

    def note(text: str, warning: bool = False) -> None:
        notes.append(text)
        if main:
            show.note(text, warning)

    world = need("accelerate", extra="train").PartialState(cpu=not host.has_accelerator())
    main: bool = world.is_main_process
    allocator = host.tune_allocator() if r.train.tune_allocator else "left alone"
    note(
        f"memory allocator {allocator}"
        + (" (train.tune_allocator=false leaves it alone)" if allocator == "tuned" else "")
    )
    out = Path(r.out).expanduser()
    start = checkpoint.find(out, resume)
    if resume is True and start is None:
        note(f"nothing to resume in {out}: starting from the beginning")
    if model is None or tokenizer is None:
        model, tokenizer = _base(r, model, tokenizer)
    if not getattr(model, "can_generate", lambda: True)() or getattr(model.config, "is_encoder_decoder", False):
        raise SpecError(f"{type(model).__name__} is no causal language model, and recipes train only those")
    if r.train.quantise is not None:
        note(f"the base's linear layers are {r.train.quantise} codes, {coded_bytes(model) / 1e6:,.1f} MB")
    train, held = _data(r, tokenizer, note) if r.grpo is None else (None, None)
    if start is None:
        plan = r.the_plan()
        with world.main_process_first():  # the others read what it has kept
            stats = measure(model, plan, train, r.train, pad_id(tokenizer), show, note)
        adapted = attach(model, plan, stats=stats)
    else:
        adapted = load(model, start / checkpoint.ADAPTER)
        if not as_asked(adapted.plan, r.plan):
            adapted.detach()
            raise StateMismatch(f"resume: the plan of {start} is not the recipe's plan")
        note(f"resuming from {start}")
    facts = adapted.report()
    note(f"{adapted.plan.method}: {facts['sites']} sites, {facts['trainable']:,} trained numbers")
    if train is not None and r.train.packing:
        if keeps_rows_apart(model):
            rows = len(train.items)
            train.items = pack(train.items, r.train.max_length or max(len(i["input_ids"]) for i in train.items))
            note(f"packed {rows} rows into {len(train.items)}")
        else:
            note(
                "packing is off: with this model and attention implementation packed rows would read each other",
                True,
            )
    if main:  # only now, when model, data and plan have been found to fit
        if start is None:
            if (moved := _set_aside(out)) is not None:
                note(f"an earlier run in {out} was moved to {moved.name} (resume=True, --resume, continues one)")
        out.mkdir(parents=True, exist_ok=True)
        r.save(out / "recipe.yaml")
    world.wait_for_everyone()
    if r.train.grad_checkpointing:
        _checkpointing(model, True)
    engine: Adapting
    if train is not None:
        engine = Engine(adapted, r.train, out, train, held, pad_id(tokenizer), show)
    else:
        from .grpo import Policy  # TRL is an extra

        engine = Policy(adapted, r, out, tokenizer, show)
    host.leave_group_at_exit()
    try:
        with interruptible(engine):
            engine.train(resume_from_checkpoint=str(start) if start is not None else None)
        seconds = engine.clock()
        if engine.stop:
            note(f"interrupted at step {engine.state.global_step}; resume from there with resume=True (--resume)", True)
        elif held is not None:
            engine.evaluate()
        chosen = _routes(adapted, held or train, r.train, pad_id(tokenizer))
    finally:
        show.end()
        engine.close()
        if r.train.grad_checkpointing:
            _checkpointing(model, False)
    model.eval()
    return _finish(r, engine, out, seconds, notes, tokenizer, main, allocator, chosen)


@contextlib.contextmanager
def interruptible(engine: Adapting) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM ends training after the step, with a checkpoint; a second one ends it at once.

    One process only: several would have to agree on the step.
    """
    if engine.accelerator.num_processes > 1 or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        if engine.stop:
            raise KeyboardInterrupt
        engine.stop = True

    before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def _base(r: Recipe, model: Any, tokenizer: Any) -> tuple[Any, Any]:
    if r.model is None:
        raise SpecError("recipe: 'model' is missing (a directory, a .gguf file or package:NAME)")
    found, words = load_base(r.model, r.train.dtype, r.train.attention, r.train.quantise)
    return (model if model is not None else found), (tokenizer if tokenizer is not None else words)


def _data(r: Recipe, tokenizer: Any, note: Any) -> tuple[Encoded, Encoded | None]:
    """The rows to learn from and the held-out ones, as tokens."""
    d, length = r.data, r.train.max_length
    if d.path is None:
        raise SpecError("recipe: 'data.path' is missing")
    set_template(tokenizer, d.chat_template)
    chat = bool(getattr(tokenizer, "chat_template", None)) if d.chat is None else d.chat

    def rows(path: str, limit: int | None) -> Any:
        return examples(read_rows(path, d.split, limit), d.format, chat=chat, system=d.system, where=path)

    found, kind = rows(d.path, d.limit)
    held: Any = None
    if d.eval_path is not None:
        held = rows(d.eval_path, None)[0]
    elif d.eval_share:
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(r.train.seed)).tolist()
        cut = max(1, round(len(found) * d.eval_share))
        if cut >= len(found):
            raise SpecError(f"data.eval_share={d.eval_share} of {len(found)} rows leaves nothing to learn from")
        held, found = [found[i] for i in sorted(order[:cut])], [found[i] for i in sorted(order[cut:])]
    train = encode(found, tokenizer, length)
    for text in train.notes(length):
        note(text, True)
    if not train.items:
        raise SpecError(f"{d.path}: no row has anything to learn within max_length={length}")
    note(f"{len(train.items)} rows ({kind}), {train.tokens} tokens, {train.labels} of them learned")
    if held is None:
        return train, None
    test = encode(held, tokenizer, length)
    for text in test.notes(length):
        note(f"held out: {text}", True)
    if not test.items:
        raise SpecError(f"no held-out row has anything to score within max_length={length}")
    return train, test


def _checkpointing(model: Any, on: bool) -> None:
    """use_reentrant=False: the other kind loses all gradients when the embeddings are frozen."""
    name = "activation_checkpointing" if hasattr(model, "activation_checkpointing_enable") else "gradient_checkpointing"
    if on:
        getattr(model, f"{name}_enable")(**{f"{name}_kwargs": {"use_reentrant": False}})
    else:
        getattr(model, f"{name}_disable")()


def _routes(adapted: Adapted, rows: Encoded | None, t: Any, pad: int) -> dict[str, Any]:
    """What the adapter's routers choose on the first rows (held-out ones where there are any); {} where it has none."""
    if rows is None or not any(layer.axis == "route" for a in adapted.assignments for layer in layers_of(a.method)):
        return {}
    some = Encoded(rows.items[: 4 * t.batch_size], rows.rows)
    with watch_routing(adapted) as seen:
        held_out(adapted.model, some, t.batch_size, pad, next(adapted.model.parameters()).device)
    return seen.sites


def _set_aside(out: Path) -> Path | None:
    """Move an earlier run's files, and nothing else, out of the way; where to."""
    old = [out / n for n in OURS if (out / n).exists()] + sorted(out.glob("checkpoint-*"))
    if (out / "recipe.yaml").exists():
        n = 1
        while (out / f"previous-{n}").exists():
            n += 1
        (out / f"previous-{n}").mkdir()
        for path in old:
            shutil.move(path, out / f"previous-{n}" / path.name)
        return out / f"previous-{n}"
    return None


def _finish(
    r: Recipe,
    engine: Adapting,
    out: Path,
    seconds: float,
    notes: list[str],
    tokenizer: Any,
    main: bool,
    allocator: str,
    chosen: dict[str, Any],
) -> RunResult:
    """Adapter, picture and summary."""
    adapted, lines = engine.adapted, engine.watch.lines
    metrics: dict[str, Any] = {}
    for line in lines:
        metrics.update({k: v for k, v in line.items() if k != "warning"})
    tokens = int(metrics.get("tokens", 0))
    result = RunResult(
        adapted,
        metrics,
        out,
        seconds,
        tokens / seconds if seconds > 0 else 0.0,
        host.peak_rss(),
        tokenizer,
        notes,
    )
    if main:
        adapted.save(out / "adapter")
        norms = site_norms(adapted)
        title = f"{adapted.report()['method']} on {r.model or type(adapted.model).__name__}"
        (out / "curves.svg").write_text(picture(lines, norms, title), encoding="utf-8")
        summary = {
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "train_seconds": round(seconds, 3),
            "tokens": tokens,
            "tokens_per_second": round(result.tokens_per_second, 1),
            "peak_rss_bytes": result.peak_rss_bytes,
            "allocator": allocator,
            "metrics": metrics,
            "sentinel": engine.watch.found,
            "notes": notes,
            "adapter": adapted.report(),
            "norms": norms,
            "ranks": adapted.ranks(),
            "routing": chosen,
            "adapter_dir": str(out / "adapter"),
        }
        (out / "run.json").write_text(json.dumps(finite(summary), indent=1), encoding="utf-8")
    return result
