"""Merging at the speed of memory: new weights over one read and one write of the same weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from .. import attach
from ..train.progress import Progress
from .clock import calibrated, now, rounds, timed
from .contender import in_peft, method_of, plan_of
from .record import group
from .setting import Setting
from .subject import load

WHAT = (
    "seconds to make all merged weights over one read and one write of the same weights. streamed: each tensor is dropped when the next "
    "one comes; kept: all of them are held, as a new model holds them; peft: merge_adapter, in place, its unmerging not timed"
)


def measure(setting: Setting, progress: Progress) -> list[dict[str, Any]]:
    out = []
    for dtype in setting.dtypes:
        subject = load(setting, dtype)
        for word in setting.methods:
            model = subject.twin()
            adapted = attach(model, plan_of(method_of(word, setting.rank, 0.0), model))
            with torch.no_grad():
                for t in adapted.trainable().values():
                    t.add_(torch.randn(t.shape, generator=torch.Generator().manual_seed(setting.seed)), alpha=0.01)
            began = time.perf_counter()
            merged = adapted.merge()
            certificate = time.perf_counter() - began
            named = dict(model.named_parameters())
            weights = [named[n].detach() for n in merged.names]

            def copy(weights: list[Any] = weights) -> None:
                for w in weights:
                    w.clone()

            def copy_kept(weights: list[Any] = weights) -> None:
                [w.clone() for w in weights]

            def streamed(merged: Any = merged) -> None:
                for _ in merged.changed():
                    pass

            def kept(merged: Any = merged) -> None:
                list(merged.changed())

            work: dict[str, Callable[[], dict[str, float]]] = {
                "copy, streamed": timed(copy, repeat=calibrated(copy)), "copy, kept": timed(copy_kept, repeat=calibrated(copy_kept)),
                "deltaw, streamed": timed(streamed, repeat=calibrated(streamed)), "deltaw, kept": timed(kept, repeat=calibrated(kept)),
            }  # fmt: skip
            pairs = [("deltaw, streamed", "copy, streamed"), ("deltaw, kept", "copy, kept")]
            if "peft" in setting.against:
                theirs = in_peft(adapted, subject.twin(own=True))
                if theirs is None:
                    progress.note(f"PEFT has no {word}: no peer for it")
                else:
                    work["peft, in place"] = in_place(theirs)
                    pairs += [("peft, in place", "copy, kept"), ("deltaw, kept", "peft, in place")]
            times = rounds(setting, progress, f"merge {word} {dtype}", work)
            facts = {
                "tensors": len(weights),
                "bytes": sum(w.numel() * w.element_size() for w in weights),
                "certificate_seconds": certificate,
            }
            out.append(group(f"{dtype}: {word}", {k: v["time"] for k, v in times.items()}, pairs, facts=facts))
    return out


def in_place(model: Any) -> Callable[[], dict[str, float]]:
    """PEFT's layers merge into their own weights and take it back."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]

    def run() -> dict[str, float]:
        began = now()
        with torch.no_grad():
            for layer in layers:
                layer.merge()
        seconds = now() - began
        for layer in layers:
            layer.unmerge()
        return {"time": seconds}

    return run
