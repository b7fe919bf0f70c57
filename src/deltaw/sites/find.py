"""From patterns to sites. Every pattern must match something: zero matches is an error that offers the nearest names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from torch import nn

from ..errors import SpecError, TargetError, nearest
from . import conv, dense, embedding, experts, foreign
from .attention import AttentionSite, is_attention
from .base import Site
from .block import BlockSite, norm_behind
from .module import ModuleSite
from .prefix import PrefixSite, backbone
from .stream import ParallelSite, StreamSite

Targets = str | Sequence[str]
ALL_LINEAR = "all-linear"
ALL_BLOCKS = "all-blocks"
ALL_NORMS = "all-norms"
KINDS = (dense, conv, embedding, foreign)  # asked in turn; the first that recognises a module supplies its site
STREAMS = {"stream": StreamSite, "parallel": ParallelSite}
LINEAR_KINDS = ("linear", "conv1d_hf", "opaque")


def leaf_site(name: str, module: nn.Module) -> Site | None:
    """The site a module offers, or None."""
    return next((s for kind in KINDS if (s := kind.site(name, module)) is not None), None)


def matches(name: str, pattern: str) -> bool:
    """`pattern`, a regular expression, fits the last components of `name` (a plain suffix is the simplest one)."""
    try:
        return re.fullmatch(rf"(?:.*\.)?(?:{pattern})", name) is not None
    except re.error as error:
        raise SpecError(f"'{pattern}' is no regular expression: {error}") from error


def layer_index(name: str) -> int | None:
    """The first number among the components of a name: the layer it belongs to."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The repeated blocks: the members of the longest nn.ModuleList."""
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    if not lists:
        return {}
    name, found = max(lists, key=lambda pair: len(pair[1]))
    return {f"{name}.{i}" if name else str(i): m for i, m in enumerate(found)}


def is_norm(module: nn.Module) -> bool:
    """A normalisation without memory: a leaf called so, all of whose parameters are vectors."""
    parameters = [p for p in module._parameters.values() if p is not None]
    leaf = all(is_ours(n) for n, _ in module.named_children()) and not any(b is not None for b in module._buffers.values())
    return bool(parameters) and leaf and all(p.dim() == 1 for p in parameters) and "norm" in type(module).__name__.lower()


def width(model: nn.Module, block: nn.Module) -> int:
    """The size of the hidden state a block puts out."""
    config = getattr(model, "config", None)
    for word in ("hidden_size", "d_model", "n_embd", "dim"):
        if isinstance(size := getattr(config, word, None), int):
            return size
    for module in reversed(list(block.modules())):
        if isinstance(module, nn.LayerNorm):
            return int(module.normalized_shape[-1])
        if isinstance(module, nn.Linear):
            return int(module.out_features)
    raise TargetError(f"the width of the hidden state behind {type(block).__name__} could not be told from its layers")


class Candidates:
    """Every place of a model that patterns may name, of one sort of site."""

    def __init__(self, model: nn.Module, sort: str):
        self.model, self.sort = model, sort
        self.modules = {n: m for n, m in model.named_modules() if not is_ours(n)}
        self.stacks = {
            (f"{n}.{a}" if n else a): (n, m, a)
            for n, m in self.modules.items()
            for a, p in m._parameters.items()
            if p is not None and p.dim() == 3 and sort == "weight" and leaf_site(n, m) is None
        }

    def names(self) -> list[str]:
        return [*self.modules, *self.stacks]

    def usable(self) -> list[str]:
        if self.sort == "norm":
            return [n for n, m in self.modules.items() if n and is_norm(m)]
        if self.sort != "weight":
            return [n for n in self.modules if n]
        return [n for n, m in self.modules.items() if leaf_site(n, m)] + list(self.stacks)

    def sites(self, name: str) -> list[Site]:
        """The sites behind a matched name; explains itself where there is none."""
        if name in self.stacks:
            return list(experts.sites(*self.stacks[name]))
        module = self.modules[name]
        if self.sort != "weight" and isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            raise TargetError(f"'{name}' is a {type(module).__name__}, which is never called; name the modules inside it")
        if self.sort in STREAMS:
            return [STREAMS[self.sort](name, module, width(self.model, module))]
        if self.sort == "block":
            every = blocks(self.model)
            return [BlockSite(name, module, width(self.model, module), every, norm_behind(self.model, next(iter(every))))]
        if self.sort == "prefix":
            return [PrefixSite(name, module, self.model)]
        if self.sort == "attention":
            return [AttentionSite(name, module)]
        if self.sort == "norm" and not (is_norm(module) or leaf_site(name, module)):
            raise TargetError(
                f"'{name}' is a {type(module).__name__}; what is trained here are norms (no batch norms, which also keep "
                "statistics), or single layers named one by one. For larger modules there is Plan(train_modules=[...])"
            )
        if self.sort in ("module", "norm"):
            return [ModuleSite(name, module)]
        parent = self.modules.get(name.rpartition(".")[0])
        if isinstance(parent, nn.MultiheadAttention):
            raise TargetError(
                f"'{name}' is never called: nn.MultiheadAttention reads its weight directly, so a delta there would "
                "be ignored silently. Leave it out (exclude=...), or use an attention module with called projections"
            )
        found = leaf_site(name, module)
        if found is None:
            inside = [n for n, m in self.modules.items() if n.startswith(name + ".") and leaf_site(n, m)]
            hint = f"; inside it: {', '.join(inside[:5])}" if inside else ""
            raise TargetError(f"'{name}' is a {type(module).__name__}, which holds no weight to adapt{hint}")
        return [found]


def is_ours(name: str) -> bool:
    """A module that attaching has added."""
    return any(part in ("deltaw", "deltaw_shared") for part in name.split("."))


def output_head(model: nn.Module) -> nn.Module | None:
    get = getattr(model, "get_output_embeddings", None)
    try:
        head = get() if callable(get) else None
    except (AttributeError, NotImplementedError):
        return None
    return head if isinstance(head, nn.Module) else None


def _pick(where: Candidates, what: str, pattern: str, literal: bool) -> list[str]:
    names = [n for n in where.names() if n]
    text = re.escape(pattern) if literal else pattern
    hit = [n for n in names if (matches(n, text) if literal else _full(n, pattern))]
    if not hit:
        usable = where.usable()
        tails = {n.rsplit(".", 1)[-1] for n in usable}
        raise TargetError(
            f"{what} '{pattern}' matches nothing in {type(where.model).__name__}"
            f"{nearest(pattern, [*sorted(tails), *usable])}; it has {', '.join(sorted(tails)[:12])}"
        )
    return hit


def _full(name: str, pattern: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise SpecError(f"target '{pattern}' is no regular expression: {error}") from error


def find(
    model: nn.Module,
    targets: Targets = ALL_LINEAR,
    exclude: Targets = (),
    layers: Iterable[int] | int | None = None,
    sort: str = "weight",
) -> list[Site]:
    """The sites that the patterns name, in the model's order.

    targets: a list of name suffixes; or one regular expression that must match whole names; or "all-linear" (every
    linear layer but the output head), "all-blocks" (for hidden states) or "all-norms". exclude: the same language.
    layers: keep sites whose layer number is among these. sort: "weight", "stream", "parallel", "block" (around a whole
    block), "attention", "module", "norm", or "prefix" (the backbone, for prompts).
    """
    where = Candidates(model, sort)
    if targets == ALL_LINEAR and sort in ("weight", "module"):
        head = output_head(model)
        names = {
            n
            for n, m in where.modules.items()
            if (s := leaf_site(n, m)) and s.kind in LINEAR_KINDS and m is not head
            and not isinstance(where.modules.get(n.rpartition(".")[0]), nn.MultiheadAttention)
        }  # fmt: skip
    elif targets in (ALL_LINEAR, ALL_BLOCKS) and sort in (*STREAMS, "block"):
        names = set(blocks(model))
    elif targets in (ALL_LINEAR, ALL_NORMS) and sort == "norm":
        names = set(where.usable())
    elif targets in (ALL_LINEAR, ALL_BLOCKS) and sort == "prefix":
        names = {backbone(model)}
    elif targets in (ALL_LINEAR, ALL_BLOCKS) and sort == "attention":
        names = {n for n, m in where.modules.items() if n and is_attention(m)}
    elif isinstance(targets, str):
        names = set(_pick(where, "target", targets, literal=False))
        usable = set(where.usable())
        names = (names & usable) or names  # a wide expression may also match containers: they are no target
    else:
        if not targets:
            raise TargetError("the list of targets is empty; name at least one, or write targets='all-linear'")
        names = {n for pattern in targets for n in _pick(where, "target", pattern, literal=True)}
    if not names:
        raise TargetError(f"{type(model).__name__} has no place for targets='{targets}'")
    drop = [exclude] if isinstance(exclude, str) else list(exclude)
    for pattern in drop:
        names -= set(_pick(where, "exclude", pattern, literal=not isinstance(exclude, str)))
    names = _in_layers(names, layers)
    if not names:
        raise TargetError(f"exclude={exclude!r} leaves nothing of targets={targets!r}")
    return [s for n in where.names() if n in names for s in where.sites(n)]


def _in_layers(names: set[str], layers: Iterable[int] | int | None) -> set[str]:
    if layers is None:
        return names
    wanted = {layers} if isinstance(layers, int) else set(layers)
    there = {i for n in names if (i := layer_index(n)) is not None}
    if missing := sorted(wanted - there):
        have = f"{min(there)} to {max(there)}" if there else "none"
        raise TargetError(f"layers {missing} do not exist among the targets; layers there: {have}")
    return {n for n in names if layer_index(n) in wanted}
