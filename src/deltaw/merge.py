"""New weights with the delta in them, and a certificate of what that did. Nothing is written in place."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .errors import SpecError
from .merging import Change, Tally, changes
from .session import Restore, session
from .sites import is_ours

if TYPE_CHECKING:
    from .attach import Adapted


@dataclass(frozen=True)
class Certificate:
    """What merging did. Output errors compare the merged model with the adapted one on the probe batch (None without
    a probe); `output_scale` is the largest adapted output. `lost` is the largest relative error of the change itself,
    |(W' - W) - delta| / |delta|: near 1 means that the weights' dtype is too coarse for this delta. `untied`: weights
    that were tied in the base and no longer are."""

    sites: int
    tensors: int
    weights_changed: int
    lost: float
    lost_at: str
    max_error: float | None
    mean_error: float | None
    output_scale: float | None
    base: dict[str, str]
    untied: list[str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


Place = Callable[[str, Tensor], Tensor]


class Merged:
    """The merged weights: `changed()` streams (name, tensor), `model()` is a copy with them, `save(dir)` writes shards.

    The weights are formed anew at every pass, from the adapter as it is then, for the task that was stated when it was
    merged (`deltaw.tasks`); the certificate is of the pass that `merge()` makes.
    """

    def __init__(self, adapted: Adapted, probe: Any = None):
        self.adapted, self.tasks = adapted, session(adapted.model).tasks
        self.tied, self.aliases = shared_names(adapted.model)
        self.sources = sources(adapted, self.aliases)
        self.names = list(self.sources)
        self.certificate = self._certify(probe)

    def changed(self, into: Place | None = None) -> Iterator[tuple[str, Tensor]]:
        """The parameters that change, one at a time, in the base's dtype; each is made in one pass over the old one.

        into(name, old) gives the tensor to write to, laid out like the old one; it may be the same memory every time
        (see `Reused`), if each tensor is used before the next is asked for. Without it every tensor is a new one.
        """
        return self._pass(into)

    @torch.no_grad()
    def _pass(self, into: Place | None = None, look: Look | None = None) -> Iterator[tuple[str, Tensor]]:
        stacks: dict[str, list[Change]] = {}
        for a in self.adapted.assignments:
            with Restore(session(self.adapted.model), tasks=self.tasks):
                found = changes(self.adapted, a)
            for change in found:
                if change.index is not None:
                    stacks.setdefault(change.name, []).append(change)
                    continue
                old = self._old(change.name)
                new = torch.empty_like(old) if into is None else into(change.name, old)
                _fill(change, new, look)
                for name in (change.name, *self.aliases[change.name]):
                    yield name, new
        for full, parts in stacks.items():
            old = self._old(full)
            new = torch.empty_like(old) if into is None else into(full, old)
            for k in set(range(len(old))) - {part.index for part in parts}:
                new[k].copy_(old[k])
            for part in parts:
                assert part.index is not None
                _fill(part, new[part.index], look)
            for name in (full, *self.aliases[full]):
                yield name, new

    def _old(self, name: str) -> Tensor:
        return self.adapted.model.get_parameter(name).detach()

    def model(self) -> nn.Module:
        """A copy of the base with the merged weights and nothing attached; broken ties are untied in it."""
        made = {name: nn.Parameter(tensor, requires_grad=False) for name, tensor in self.changed()}
        memo: dict[int, Any] = {}  # what a copy would replace or drop at once is not copied
        for name, p in self.adapted.model.named_parameters(remove_duplicate=False):
            if name in made and all(other in made for other in self.tied[name]):
                memo[id(p)] = made[min([name, *self.tied[name]])]
            elif is_ours(name):
                memo[id(p)] = p
        flags = {id(p): p.requires_grad for p in memo.values()}
        new = copy.deepcopy(self.adapted.model, memo)
        session(new).rows = None
        for name in list(session(new).adapters):
            session(new).adapters[name].detach()
        for p in memo.values():
            if id(p) in flags:
                p.requires_grad_(flags[id(p)])
        for name in made:
            first = min([name, *self._still_tied(name)])  # both ends changed in the same way: still one tensor
            path, _, word = name.rpartition(".")
            setattr(new.get_submodule(path), word, made[first])
        _say_untied(new, self.certificate.untied)
        return new

    def save(self, directory: Any, max_shard_bytes: int = 2 * 2**30) -> Path:
        """Stream the whole merged model to a directory of safetensors shards (with index, config and certificate)."""
        from .files import save_model

        return save_model(self, directory, max_shard_bytes)

    def _still_tied(self, name: str) -> list[str]:
        return [t for t in self.tied[name] if self.sources.get(t) == self.sources[name]]

    @torch.no_grad()
    def _certify(self, probe: Any) -> Certificate:
        from .files import fingerprint

        model, plan = self.adapted.model, self.adapted.plan
        probe = default_probe(model) if probe is None else probe
        look, new, seen = Look(), dict[str, Tensor](), set[str]()
        for name, tensor in self._pass(Reused() if probe is None else None, look):
            if probe is not None and name not in seen:
                new[name] = tensor
            seen.update((name, *self.aliases[name]))  # functional_call would not put back what it swaps twice
        untied = [n for n in self.names if len(self._still_tied(n)) < len(self.tied[n])]
        worst, mean, size = (None, None, None) if probe is None else self._compare(probe, new)
        base_print = fingerprint(model, plan.train_modules)
        return Certificate(
            len(self.adapted.assignments),
            len(self.names),
            look.count,
            look.lost,
            look.lost_at,
            worst,
            mean,
            size,
            base_print,
            untied,
        )

    def _compare(self, probe: Any, new: dict[str, Tensor]) -> tuple[float, float, float]:
        model, shared = self.adapted.model, session(self.adapted.model)
        args = probe if isinstance(probe, tuple) else () if isinstance(probe, dict) else (probe,)
        kwargs = probe if isinstance(probe, dict) else {}
        with Restore(shared, live=self.adapted.parts, off=False, rows=None):
            want = output(model(*args, **kwargs))
        with Restore(shared, off=True):
            got = output(functional_call(model, new, args, kwargs, tie_weights=False))
        gap = (got.double() - want.double()).abs()
        return float(gap.max()), float(gap.mean()), float(want.abs().max())


class Reused:
    """A place for `Merged.changed`: one piece of memory per dtype, as large as the largest tensor so far."""

    def __init__(self) -> None:
        self.memory: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def __call__(self, name: str, old: Tensor) -> Tensor:
        key = (old.dtype, old.device)
        if key not in self.memory or self.memory[key].numel() < old.numel():
            self.memory[key] = torch.empty(old.numel(), dtype=old.dtype, device=old.device)
        stride = torch.empty_like(old, device="meta").stride()
        return self.memory[key].as_strided(old.shape, stride)


class Look:
    """What the certificate says of the weights, gathered during the pass that makes them."""

    def __init__(self) -> None:
        self.count, self.lost, self.lost_at = 0, 0.0, ""

    def add(self, name: str, tally: Tally) -> None:
        self.count += tally.changed
        if tally.lost > self.lost:
            self.lost, self.lost_at = tally.lost, name


def _fill(change: Change, new: Tensor, look: Look | None) -> None:
    tally = None if look is None else Tally()
    change.fill(new, tally)
    if look is not None and tally is not None:
        look.add(change.name, tally)


Names = dict[str, list[str]]


def shared_names(model: nn.Module) -> tuple[Names, Names]:
    """For every parameter name: the other names of the same parameter, and those of them in the same module (an instance
    that stands at several places)."""
    by_tensor: dict[int, list[str]] = {}
    by_owner: dict[tuple[int, str], list[str]] = {}
    tied: Names = {}
    aliases: Names = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for word, p in module._parameters.items():
            if p is not None:
                name = f"{path}.{word}" if path else word
                tied[name] = by_tensor.setdefault(id(p), [])
                aliases[name] = by_owner.setdefault((id(module), word), [])
                tied[name].append(name)
                aliases[name].append(name)
    return tuple({n: [o for o in group if o != n] for n, group in found.items()} for found in (tied, aliases))  # type: ignore[return-value]


def sources(adapted: Adapted, aliases: Names) -> dict[str, str]:
    """The parameters that change, each with the site whose tensors change it. No weight is computed for that."""
    out: dict[str, str] = {}
    for a in adapted.assignments:
        for full in dict.fromkeys(change.name for change in changes(adapted, a)):
            for name in (full, *aliases[full]):
                out.setdefault(name, a.shares or a.site.name)
    return out


def _say_untied(model: nn.Module, untied: list[str]) -> None:
    config = getattr(model, "config", None)
    if untied and getattr(config, "tie_word_embeddings", None):
        config.tie_word_embeddings = False  # type: ignore[union-attr]


def output(out: Any) -> Tensor:
    """The tensor of a model's output that comparisons look at."""
    for word in ("logits", "last_hidden_state"):
        if isinstance(found := getattr(out, word, None), Tensor):
            return found
    found = out[0] if isinstance(out, (tuple, list)) else out
    if not isinstance(found, Tensor):
        raise SpecError(f"a model output with logits, or a tensor, was expected; found {type(out).__name__}")
    return found


def default_probe(model: nn.Module) -> dict[str, Tensor] | None:
    """Two rows of 16 token ids for a language model; None for anything else."""
    size = getattr(getattr(model, "config", None), "vocab_size", None)
    if not isinstance(size, int):
        return None
    device = next(p for n, p in model.named_parameters() if not is_ours(n)).device
    return {"input_ids": (torch.arange(32, device=device).reshape(2, 16) * 7919 + 5) % size}


def merge(adapted: Adapted, probe: Any = None) -> Merged:
    """See `Adapted.merge`. Raises NotMergeable where a delta depends on its input or the base cannot hold it."""
    modes = {m: m.training for m in adapted.model.modules()}
    adapted.model.eval()  # a merge is of the evaluation-mode function: no dropout
    try:
        return Merged(adapted, probe)
    finally:
        for module, mode in modes.items():
            module.training = mode
