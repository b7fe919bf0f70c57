"""Decoding a batch whose rows have adapters of their own, over the base's decoding step."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..bank import Bank
from ..errors import SpecError, need
from ..train.progress import Progress
from .clock import Timed, now, rounds
from .fleet import adapters_on_disk
from .record import group
from .setting import Setting
from .subject import Subject, load

WHAT = (
    "seconds of one decoding step (one token a row, key-value cache, head included) of a mixed batch over the base's. Rows of one "
    "adapter are not neighbours; unequal: the first adapter has half of the rows, the next a quarter, ...; mixed ranks: r/4 to 4 r"
)
STEPS = 4


def measure(setting: Setting, progress: Progress) -> list[dict[str, Any]]:
    if setting.layer:
        raise SpecError("a decoding step needs a language model: leave --layer out")
    out = []
    for dtype in setting.dtypes:
        subject = load(setting, dtype)
        with tempfile.TemporaryDirectory() as folder:
            work = candidates(setting, subject, Path(folder), progress)
        times = rounds(setting, progress, f"mixed {dtype}", work)
        raw = {k: v["time"] for k, v in times.items()}
        pairs = [(k, "base") for k in raw if k != "base"]
        pairs += [
            (k, f"peft {k.removeprefix('deltaw ')}")
            for k in raw
            if f"peft {k.removeprefix('deltaw ')}" in raw and k.startswith("deltaw ")
        ]
        out.append(group(f"{dtype}: {setting.rows_tokens[0]} rows, {setting.rows_tokens[1]} tokens cached", raw, pairs))
    return out


def candidates(setting: Setting, subject: Subject, folder: Path, progress: Progress) -> dict[str, Timed]:
    rows, tokens = setting.rows_tokens
    counts = [k for k in setting.adapters if 0 < k <= rows]
    if not counts:
        raise SpecError(f"--adapters: numbers from 1 to the {rows} rows were expected; found {list(setting.adapters)}")
    ids = torch.randint(
        0, subject.base.config.vocab_size, (rows, tokens + 1), generator=torch.Generator().manual_seed(setting.seed)
    )  # type: ignore[union-attr]
    base = subject.twin().eval()
    with torch.no_grad():
        cache = base(input_ids=ids[:, :-1], use_cache=True).past_key_values
    last = ids[:, -1:]
    work: dict[str, Timed] = {"base": decoding(base, last, cache)}
    model = subject.twin().eval()
    most = max(counts)
    bank = Bank(model, mixtures=2 * len(counts) + 8)  # all mixtures stay built, as in a generation that goes on
    files = adapters_on_disk(setting, subject, folder, min(8, most))
    for k in range(most):
        bank.add(f"a{k}", files[k % len(files)])
    ranks = sorted({max(1, setting.rank * f // 4) for f in (1, 2, 4, 8, 16)})
    for r in ranks:
        (path,) = adapters_on_disk(dataclasses.replace(setting, rank=r), subject, folder / f"rank{r}", 1)
        bank.add(f"rank{r}", path)
    mixtures = {f"{k} adapter{'s'[: k > 1]}": spread([f"a{j}" for j in range(k)], rows) for k in counts}
    for k in counts:
        if 1 < k < rows:
            mixtures[f"{k} adapters, unequal"] = shuffled([f"a{j}" for j in halves(rows, k)])
    mixtures["mixed ranks"] = spread([f"rank{r}" for r in ranks], rows)
    for word, names in mixtures.items():
        work[f"deltaw {word}"] = decoding(model, last, cache, lambda names=names: bank.rows(names))  # type: ignore[misc]
    if "peft" in setting.against:
        theirs = peers(setting, subject, most, progress)
        for k in counts:
            word = f"{k} adapter{'s'[: k > 1]}"
            work[f"peft {word}"] = decoding(theirs, last, cache, adapter_names=mixtures[word])
    return work


def spread(names: list[str], rows: int) -> list[str]:
    """Row i has the adapter i mod k."""
    return [names[i % len(names)] for i in range(rows)]


def halves(rows: int, k: int) -> list[int]:
    """Adapter numbers: half of the rows the first, a quarter the next, ..., at least one each."""
    out: list[int] = []
    for j in range(k):
        out += [j] * max(1, min((rows - len(out)) // 2, rows - len(out) - (k - 1 - j)))
    return out + [0] * (rows - len(out))


def shuffled(names: list[str]) -> list[str]:
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(1)).tolist()
    return [names[i] for i in order]


def decoding(
    model: Any, ids: Any, cache: Any, context: Callable[[], Any] = contextlib.nullcontext, **more: Any
) -> Timed:
    """A few decoding steps from the same cache; what enters the mixture is not timed, a generation does that once."""

    @torch.no_grad()
    def run() -> dict[str, float]:
        spent = 0.0
        with context():
            for _ in range(STEPS):
                began = now()
                model(input_ids=ids, past_key_values=cache, use_cache=True, **more)
                spent += now() - began
                cache.crop(-1)
        return {"time": spent / STEPS}

    return run


def peers(setting: Setting, subject: Subject, count: int, progress: Progress) -> Any:
    """PEFT with that many adapters, all different and not zero."""
    peft = need("peft", extra="peft")
    config = peft.LoraConfig(
        r=setting.rank, lora_alpha=8, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
    )
    progress.begin(count, what="PEFT's adapters")
    model = peft.get_peft_model(subject.twin(), config, adapter_name="a0")
    for k in range(1, count):
        model.add_adapter(f"a{k}", config)
        progress.step(k + 1)
    progress.end()
    return model.eval()
