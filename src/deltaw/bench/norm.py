"""Row norms of W + s B A: without the matrix, with it, and PEFT's, beside the frozen layers themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import attach
from ..convert import site_layer
from ..errors import need
from ..ops import Affine, row_norm
from ..train.progress import Progress
from .clock import calibrated, rounds, timed
from .contender import method_of, plan_of
from .record import group
from .setting import Setting
from .subject import Subject, load

WHAT = (
    "seconds for the Euclidean norms of all rows of W + s B A at every adapted layer; frozen: the plain forward of the same layers on "
    "the batch; dense: the matrix is built; peft: the matrix is built from an identity, as its DoRA does in every forward"
)


def measure(setting: Setting, progress: Progress) -> list[dict[str, Any]]:
    out = []
    for dtype in setting.dtypes:
        work, facts = candidates(setting, load(setting, dtype))
        times = rounds(setting, progress, f"norm {dtype}", {k: timed(f, repeat=calibrated(f)) for k, f in work.items()})
        raw = {k: v["time"] for k, v in times.items()}
        pairs = [(k, "frozen") for k in raw if k != "frozen"] + [
            ("deltaw", k) for k in raw if k not in ("frozen", "deltaw")
        ]
        out.append(group(dtype, raw, pairs, facts=facts))
    return out


@torch.no_grad()
def candidates(setting: Setting, subject: Subject) -> tuple[dict[str, Callable[[], Any]], dict[str, Any]]:
    model = subject.twin()
    adapted = attach(model, plan_of(method_of(setting.methods[0], setting.rank, 0.0), model))
    random = torch.Generator().manual_seed(setting.seed)
    for t in adapted.trainable().values():
        t.normal_(0, 0.01, generator=random)
    rows, tokens = setting.rows_tokens
    layers = [model.get_submodule(a.site.name) for a in adapted.assignments]
    weights: list[Tensor] = [layer.weight for layer in layers]
    inputs = {w.shape[1]: torch.randn(rows * tokens, w.shape[1], generator=random).to(w.dtype) for w in weights}
    entries = adapted.entries()
    own = [entries[a.site.name] for a in adapted.assignments]
    scale = float(getattr(adapted.plan.method, "scale", 1.0))
    pairs = [(e.get("B").detach(), e.get("A").detach()) for e in own]

    @torch.no_grad()
    def frozen() -> None:
        for w in weights:
            torch.nn.functional.linear(inputs[w.shape[1]], w)

    @torch.no_grad()
    def ours() -> list[Tensor]:
        found = []
        for a in adapted.assignments:
            L = site_layer(adapted, a)
            assert isinstance(L, Affine)
            found.append(row_norm(L.op))
        return found

    @torch.no_grad()
    def dense() -> list[Tensor]:
        return [
            torch.linalg.vector_norm(w + (scale * (B @ A)).to(w.dtype), dim=1, dtype=torch.float32)
            for w, (B, A) in zip(weights, pairs)
        ]

    work: dict[str, Callable[[], Any]] = {"frozen": frozen, "dense": dense, "deltaw": ours}
    if "peft" in setting.against:
        need("peft", extra="peft")
        from peft.tuners.lora.dora import DoraLinearLayer

        layer = DoraLinearLayer(fan_in_fan_out=False)
        linears = [(as_linear(B), as_linear(A)) for B, A in pairs]

        @torch.no_grad()
        def theirs() -> list[Tensor]:
            found = []
            for w, (B, A) in zip(weights, linears):
                product = layer.get_lora_weight(lora_A=A, lora_B=B)
                found.append(layer.get_weight_norm(w, product.to(w.dtype), scale))
            return found

        work["peft"] = theirs
    want = [
        torch.linalg.vector_norm(w.double() + scale * (B.double() @ A.double()), dim=1)
        for w, (B, A) in zip(weights, pairs)
    ]
    errors = {k: worst(want, f()) for k, f in work.items() if k != "frozen"}
    return work, {"layers": len(weights), "largest_relative_error": errors}


def worst(want: list[Tensor], got: list[Tensor]) -> float:
    return max(float(((g.double() - w) / w).abs().max()) for w, g in zip(want, got))


def as_linear(w: Tensor) -> torch.nn.Linear:
    layer = torch.nn.Linear(w.shape[1], w.shape[0], bias=False)
    layer.weight = torch.nn.Parameter(w, requires_grad=False)
    return layer
