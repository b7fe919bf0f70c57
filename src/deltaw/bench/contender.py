"""The candidates of a comparison: the floor, our methods, the same methods in PEFT, full fine-tuning."""

from __future__ import annotations

import dataclasses
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import attach
from ..errors import ShapeError, SpecError, need
from ..plan import Plan
from ..spec import METHODS, Method, build
from ..train.progress import Progress
from .setting import Setting
from .subject import Layer, Subject

FLOOR, FULL, DROP = "floor", "full", "+drop"


@dataclass
class Contender:
    """A model with what it trains. `who` is deltaw, peft or "" (floor, full); `method` the word it was asked for by."""

    name: str
    model: nn.Module
    trained: list[Tensor]
    optimizer: torch.optim.Optimizer | None = None
    who: str = ""
    method: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def method_of(word: str, rank: int, dropout: float) -> Method:
    """ "lora", "lora+drop", "loha:r=8", "gralora:r=32,k=4"-like words, "trainable_tokens:ids=0..15": columns of
    the weight; every rank a method has is `rank` unless given."""
    name, _, fields = word.removesuffix(DROP).partition(":")
    cls = METHODS[name]
    known = {f.name: f for f in dataclasses.fields(cls)}
    values: dict[str, Any] = {k: rank for k in ("r", "r1", "r2") if k in known}
    if "inner" in known:
        inner = METHODS["lora"]()
        values["inner"] = dataclasses.replace(inner, r=rank)  # type: ignore[type-var]
    for pair in filter(None, fields.split(";")):
        key, _, text = pair.partition("=")
        values[key] = _number(text)
    made = build(cls, values)
    return METHODS["drop"](inner=made, p=dropout) if word.endswith(DROP) else made  # type: ignore[no-any-return]


def _number(text: str) -> Any:
    """A number; "0..15", the whole numbers from one to the other; else the word."""
    first, dots, last = text.partition("..")
    if dots and first.isdigit() and last.isdigit():
        return tuple(range(int(first), int(last) + 1))
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def plan_of(method: Method, model: nn.Module) -> Plan:
    return Plan(method, targets=["proj"] if isinstance(model, Layer) else "all-linear")


def contenders(setting: Setting, subject: Subject, progress: Progress) -> dict[str, Contender]:
    """floor first, then each method with its peer right after it, then full; what cannot be built is noted and left out."""
    found = [Contender(FLOOR, subject.twin(), [])]
    for word in setting.methods:
        try:
            found += pair(setting, subject, word, progress)
        except (ShapeError, SpecError) as error:
            progress.note(f"{word} is left out: {error}", warning=True)
    if setting.full:
        model = subject.twin(own=True, trained=True)
        trained = [p for p in model.parameters() if p.requires_grad]
        found.append(Contender(FULL, model, trained, adamw(trained)))
    return {c.name: c for c in found}


def pair(setting: Setting, subject: Subject, word: str, progress: Progress) -> list[Contender]:
    """One method here and, if asked for, in PEFT."""
    model = subject.twin()
    method = method_of(word, setting.rank, setting.dropout)
    adapted = attach(model, plan_of(method, model))
    trained: list[Tensor] = list(adapted.trainable().values())
    facts = {"method": repr(method), "sites": len(adapted.assignments), "trainable": sum(p.numel() for p in trained)}
    out = [Contender(f"deltaw {word}", model, trained, ours(adapted), "deltaw", word, facts)]
    if "peft" in setting.against:
        theirs = in_peft(adapted, subject.twin())
        if theirs is None:
            progress.note(f"PEFT has no {word}: no peer for it")
        else:
            trained = [p for p in theirs.parameters() if p.requires_grad]
            facts = {"trainable": sum(p.numel() for p in trained)}
            if facts["trainable"] != out[0].facts["trainable"]:
                progress.note(
                    f"{word}: PEFT trains {facts['trainable']:,} numbers, deltaw {out[0].facts['trainable']:,}",
                    warning=True,
                )
            out.append(Contender(f"peft {word}", theirs, trained, adamw(trained), "peft", word, facts))
    return out


def in_peft(adapted: Any, twin: Any) -> Any:
    """The same method put on a twin by PEFT itself, from the configuration that deltaw writes; None where PEFT lacks it.

    Returns the twin, which PEFT changes in place: both libraries are then called in the same way."""
    peft = need("peft", extra="peft")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted.save(f"{folder}/a")
        if not (Path(folder) / "a" / "adapter_config.json").is_file():
            return None
        config = peft.PeftConfig.from_pretrained(f"{folder}/a")
        config.inference_mode = False
        peft.get_peft_model(twin, config)
    return twin.train()


def ours(adapted: Any) -> torch.optim.Optimizer:
    try:
        return adapted.optimizer(1e-4, steps=1_000_000, fused=True)  # type: ignore[no-any-return]
    except (TypeError, RuntimeError):
        return adapted.optimizer(1e-4, steps=1_000_000)  # type: ignore[no-any-return]


def adamw(trained: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0, fused=True)


def ratios_of(found: dict[str, Contender]) -> list[tuple[str, str]]:
    """Everything over the floor, and each of ours over its peer and over full fine-tuning."""
    pairs = [(name, FLOOR) for name in found if name != FLOOR]
    pairs += [
        (name, f"peft {c.method}") for name, c in found.items() if c.who == "deltaw" and f"peft {c.method}" in found
    ]
    pairs += [(name, FULL) for name, c in found.items() if c.who == "deltaw" and FULL in found]
    first = next((name for name, c in found.items() if c.who == "deltaw"), None)
    return pairs + [(n, first) for n, c in found.items() if c.who == "deltaw" and n != first and first is not None]
