"""Switching a sparse adapter in fused weights, against fusing a LoRA with as many numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import attach
from ..fuse import Fused
from ..plan import Plan
from ..train.progress import Progress
from .clock import Timed, now, rounds
from .contender import in_peft, method_of, plan_of
from .merge import in_place
from .record import group
from .setting import Setting
from .subject import Subject, load

WHAT = (
    "seconds to write a sparse adapter (SHiRA) into the weights, and to go from one to another, which restores the base's values "
    "besides; against fusing a LoRA with as many trained numbers (naive: W + s B A; addmm: in place; peft: merge_adapter) and against "
    "subtracting one and adding another"
)


def measure(setting: Setting, progress: Progress) -> list[dict[str, Any]]:
    out = []
    for dtype in setting.dtypes:
        subject = load(setting, dtype)
        work, facts = candidates(setting, subject)
        times = rounds(setting, progress, f"switch {dtype}", work)
        raw = {k: v["time"] for k, v in times.items()}
        fuse, change = list(raw)[:2]
        pairs = [(k, change if k.endswith("switch") else fuse) for k in raw if k not in (fuse, change)]
        out.append(group(dtype, raw, pairs, facts=facts))
    return out


def candidates(setting: Setting, subject: Subject) -> tuple[dict[str, Timed], dict[str, Any]]:
    random = torch.Generator().manual_seed(setting.seed)
    sparse = subject.twin(own=True)
    for k, name in enumerate(("a", "b")):
        method = method_of(f"shira:r={setting.rank}", setting.rank, 0.0)
        plan = plan_of(method, sparse)
        adapted = attach(sparse, Plan(method, targets=plan.targets, seed=k), name)
        with torch.no_grad():
            for t in adapted.trainable().values():
                t.normal_(0, 0.01, generator=random)
    numbers = sum(t.numel() for t in adapted.trainable().values())
    live = Fused(sparse)
    for name in "aba":  # the first switch to an adapter prepares it
        live.switch(name)

    def fuse() -> dict[str, float]:
        live.restore()
        began = now()
        live.switch("a")
        return {"time": now() - began}

    def change() -> dict[str, float]:
        live.switch("a")
        began = now()
        live.switch("b")
        return {"time": now() - began}

    model = subject.twin()
    lora = attach(model, plan_of(method_of("lora", setting.rank, 0.0), model))
    with torch.no_grad():
        for t in lora.trainable().values():
            t.normal_(0, 0.01, generator=random)
    weights = [model.get_submodule(a.site.name).weight.detach().clone() for a in lora.assignments]
    keep = [w.clone() for w in weights]
    entries = lora.entries()
    pairs = [
        (entries[a.site.name].get("B").detach().to(w.dtype), entries[a.site.name].get("A").detach().to(w.dtype))
        for a, w in zip(lora.assignments, weights)
    ]
    scale = float(getattr(lora.plan.method, "scale", 1.0))
    work: dict[str, Timed] = {
        "sparse, fuse": fuse,
        "sparse, switch": change,
        "lora, naive fuse": fusing(weights, keep, pairs, lambda w, B, A: w + scale * (B @ A)),
        "lora, addmm": fusing(weights, keep, pairs, lambda w, B, A: w.addmm_(B, A, alpha=scale)),
        "lora, naive switch": fusing(weights, keep, pairs, lambda w, B, A: (w - scale * (B @ A)) + scale * (B @ A)),
    }
    if "peft" in setting.against:
        theirs = in_peft(lora, subject.twin(own=True))
        work["peft, merge_adapter"] = in_place(theirs)
    facts = {
        "numbers of the sparse adapter": numbers,
        "numbers of the LoRA": sum(t.numel() for t in lora.trainable().values()),
        "layers": len(weights),
    }
    return work, facts


def fusing(
    weights: list[Tensor],
    keep: list[Tensor],
    pairs: list[tuple[Tensor, Tensor]],
    fuse: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Timed:
    """All layers fused; taking it back is not timed."""

    @torch.no_grad()
    def run() -> dict[str, float]:
        began = now()
        for k, (B, A) in enumerate(pairs):
            weights[k] = fuse(weights[k], B, A)
        seconds = now() - began
        for w, k in zip(weights, keep):
            w.copy_(k)
        return {"time": seconds}

    return run
