"""The size of what forms attention scores, against the threshold below which fast attention gradients exist."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import TargetError
from ...sites.find import is_ours

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "query", "key", "value", "qkv_proj", "qkv", "c_attn", "query_key_value")


@torch.no_grad()
def score_sizes(
    model: nn.Module, run: Callable[[], Any], projections: Sequence[str] = PROJECTIONS
) -> dict[str, dict[str, float]]:
    """{attention module: {"gamma", "length", "ratio"}} of one pass `run()`, with whatever adapters are live.

    gamma = max over q, k, v of the largest |X W'|, W' with the adapter; ratio = gamma / sqrt(ln L), L the length.
    Source: arXiv:2406.03136: unless SETH fails, the gradient of LoRA in attention has an almost-linear-time
    approximation only while such entries stay below the order of sqrt(log L). Reading: the threshold's constant and each
    norm's normalisation are not fixed here, so compare ratios with each other, before and after training. The bias is
    left out.
    """
    found: dict[str, dict[str, float]] = {}
    hooks = []

    def look(name: str, module: nn.Module) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], y: Tensor) -> None:
            bias = getattr(module, "bias", None)
            entry = found.setdefault(name.rpartition(".")[0] or name, {"gamma": 0.0, "length": 0.0})
            entry["gamma"] = max(entry["gamma"], float((y if bias is None else y - bias).abs().max()))
            entry["length"] = float(y.shape[-2]) if y.dim() > 1 else 1.0

        return hook

    for name, module in model.named_modules():
        if name.rpartition(".")[2] in projections and not is_ours(name):
            hooks.append(module.register_forward_hook(look(name, module)))
    if not hooks:
        raise TargetError(f"{type(model).__name__} has no module called {', '.join(projections)}; name its projections")
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    for entry in found.values():
        entry["ratio"] = entry["gamma"] / math.sqrt(math.log(entry["length"])) if entry["length"] > 1 else math.inf
    return found
