"""Parametrisations under which learning rates carry over to wider models: muP against a base model, and u-muP.

    rule = deltaw.mup(model, small)               # once, on a fresh model; `small`: the same model at the width where rates were tuned
    optimizer = deltaw.optimizer(model, rule, lr)

Both change the start of the weights in place and give heads (and, for u-muP, every layer) a constant factor through a forward
hook: names, shapes and the state dict stay. What a checkpoint does not hold are those factors: build it again with `fresh=False`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .errors import ShapeError, SpecError
from .methods.update.mup import MuP
from .methods.update.umup import UMuP
from .ops import random as rng
from .sites import Site
from .sites.find import blocks, leaf_site

MARK = "_deltaw_parametrised"
Shapes = dict[str, list[int | None]]


class Times:
    """A hook that multiplies what goes in, or what comes out. A class, so that models can still be copied and pickled."""

    def __init__(self, factor: float):
        self.factor = factor

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0] * self.factor, *args[1:])

    def after(self, module: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor:
        return y * self.factor


def base_shapes(model: nn.Module, base: nn.Module) -> Shapes:
    """{parameter: its sizes in `base`}, None for a size that both have: no width. Both may lie on the meta device.

    For a rule that is to be used at several widths `model` is any other width. Trap: a width that happens to be the same in both
    counts as none.
    """
    here, there = ({k: tuple(p.shape) for k, p in m.named_parameters()} for m in (model, base))
    if here.keys() != there.keys():
        odd = sorted(here.keys() ^ there.keys())
        raise SpecError(
            f"the two models have other parameters, first '{odd[0]}': muP compares the same model at two widths"
        )
    for name in here:
        if len(here[name]) != len(there[name]):
            raise ShapeError(f"{name}: {here[name]} here and {there[name]} in the base have other dims")
    return {k: [b if b != d else None for d, b in zip(here[k], there[k])] for k in here}


def layers(model: nn.Module) -> Iterator[tuple[Site, str, Any]]:
    """(site, name of its weight, module) of every linear layer, convolution and table, a tied weight under its first name."""
    names = {id(p): k for k, p in model.named_parameters()}
    for name, module in model.named_modules():
        site, weight = leaf_site(name, module), getattr(module, "weight", None)
        if site is not None and isinstance(weight, nn.Parameter):
            yield site, names[id(weight)], module


def mup(
    model: nn.Module,
    base: nn.Module,
    *,
    delta: nn.Module | None = None,
    fresh: bool = True,
    start: Literal["auto", "fan_in", "constant"] = "auto",
    zero_readout: bool = False,
    output_mult: float = 1.0,
    inner: Any = "adamw",
    like: Literal["adam", "sgd"] = "adam",
) -> MuP:
    """Put a fresh model into muP relative to `base`, in place and once, and give the update rule that goes with it.

    Heads (width in, no width out) see output_mult x / (n / n0), and start without falling with n; a module with attributes `scaling` and
    `head_dim` (transformers' attention) gets the base's scaling times its d0 / d, so scores are q k / d up to a constant. start: how the model was drawn:
    "fan_in" (torch's layers: std ~ 1 / sqrt n: heads and linear biases are scaled up) or "constant" (one std for all, transformers':
    matrices are scaled down by sqrt(n / n0)); "auto" looks for `config.initializer_range`. zero_readout: heads start at zero. fresh=False: weights
    from a checkpoint, only the factors are set up. delta: a model at a third width, where the sizes of `model` and `base` do not tell which
    are widths. At the base's own shapes nothing changes (but for output_mult and zero_readout, where delta says what a head is).
    Source: Yang et al. 2022 and microsoft/mup. Trap: attention that computes its own 1 / sqrt d (nn.MultiheadAttention) is not
    touched: grow such a model by its heads, at a fixed head size.
    """
    known = base_shapes(model if delta is None else delta, base)
    base_shapes(model, base)  # the same parameters
    if start == "auto":
        start = (
            "constant" if getattr(getattr(model, "config", None), "initializer_range", None) is not None else "fan_in"
        )
    tables = {w for site, w, _ in layers(model) if site.kind == "embedding"}
    found, turned = [], []
    for site, name, module in layers(model):
        if site.kind == "embedding":
            continue
        sizes, shape = known[name], list(module.weight.shape)
        if site.transposed:
            turned.append(name)
            sizes, shape = sizes[::-1], shape[::-1]
        out, into = (d / b if b is not None else None for d, b in zip(shape[:2], sizes[:2]))
        if zero_readout and out is None and into is not None and name in tables:
            raise SpecError(f"{site.name} is tied to an embedding: it cannot start at zero")
        found.append((name, module, out is not None, into))
    _once(model)  # from here on the model is changed
    where, readouts, done = dict(base.named_modules()), [], set[str]()
    for name, module, wide, into in found:
        head = not wide and into is not None
        if head:
            readouts.append(name)
            module.register_forward_pre_hook(Times(output_mult / (into or 1.0)).before)
        if fresh:
            own = name not in tables and name not in done  # a weight of two layers is scaled once
            _rescale(module, start, head, wide, into, own, head and zero_readout)
            done.add(name)
    for name, module in model.named_modules():
        d, scaling, there = getattr(module, "head_dim", None), getattr(module, "scaling", None), where.get(name)
        if isinstance(d, int) and isinstance(scaling, float):
            module.scaling = scaling * math.sqrt(getattr(there, "head_dim", d) / d)
    return MuP(base=known, readouts=tuple(readouts), turned=tuple(turned), inner=inner, like=like)


@torch.no_grad()
def _rescale(module: Any, start: str, head: bool, wide: bool, into: float | None, own: bool, zero: bool) -> None:
    weight, bias = module.weight, getattr(module, "bias", None)
    if zero:
        weight.zero_()
    if own and into is not None:
        if head and start == "fan_in":
            weight.mul_(into**0.5)
        if wide and start == "constant":
            weight.mul_(into**-0.5)
    if bias is not None and zero:
        bias.zero_()
    elif bias is not None and into is not None and start == "fan_in":
        bias.mul_(into**0.5)


def umup(
    model: nn.Module, *, fresh: bool = True, seed: int = 0, attention_mult: float = 1.0, inner: Any = "adamw"
) -> UMuP:
    """Put a model into u-muP, in place and once: weights N(0, 1), factors in the forward; and give its update rule.

    y = W x / sqrt n in every linear layer, W x / n in the head (`get_output_embeddings`), scores attention_mult q k / d, biases zero. A
    weight that is tied to an embedding is a table. fresh=False: weights from a checkpoint.
    Source: Blake et al. 2024 and graphcore-research/unit-scaling. Reading: what an ordinary model allows. Gradients get the forward's
    factors (their default constraint); the factor 1 / sqrt(batch) of weight gradients is left out, as Adam does not see it; activation functions, softmax and the
    residual stream keep their own sizes, so the stream grows with depth, not with width. Trap: rates are of order 1 here, not 1e-3.
    """
    _once(model)
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    readouts, turned, drawn = [], [], set[str]()
    for site, name, module in layers(model):
        if site.transposed and site.kind != "embedding":
            turned.append(name)
        fan_in = module.weight.shape[0] if name in turned else module.weight[0].numel()
        if module is head:
            readouts.append(name)
            module.register_forward_hook(Times(1 / fan_in).after)
        elif site.kind != "embedding":
            module.register_forward_hook(Times(fan_in**-0.5).after)
        if fresh and name not in drawn:
            with torch.no_grad():
                module.weight.copy_(rng.normal(tuple(module.weight.shape), rng.key(seed, name, "umup")))
                if getattr(module, "bias", None) is not None:
                    module.bias.zero_()
            drawn.add(name)
    part: Any
    for part in model.modules():
        d = getattr(part, "head_dim", None)
        if isinstance(d, int) and isinstance(getattr(part, "scaling", None), float):
            part.scaling = attention_mult / d
    tables = {w for site, w, _ in layers(model) if site.kind == "embedding"}
    stack = blocks(model)
    first = next(iter(stack), "")
    own = tuple(n for n in readouts if n not in tables)
    return UMuP(own, tuple(turned), first.rpartition(".")[0], max(len(stack), 1), inner)


def _once(model: nn.Module) -> None:
    """A second time would scale what is scaled already."""
    if model.__dict__.get(MARK):
        raise SpecError(
            "this model is parametrised already; a model is put into muP or u-muP once (fresh=False for one whose weights are loaded)"
        )
    model.__dict__[MARK] = True


__all__ = ["base_shapes", "layers", "mup", "umup"]
