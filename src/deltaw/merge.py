"""New weights with the delta in them, and a certificate of what that did. Nothing is written in place."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .convert import site_layer
from .errors import SpecError
from .ops import Affine, delta
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


class Merged:
    """The merged weights: `changed()` streams (name, tensor), `model()` is a copy with them, `save(dir)` writes shards."""

    def __init__(self, adapted: Adapted, probe: Any = None):
        self.adapted = adapted
        self.sources = self._sources()
        self.names = list(self.sources)
        self.certificate = self._certify(probe)

    @torch.no_grad()
    def changed(self) -> Iterator[tuple[str, Tensor]]:
        """The parameters that change, one at a time, in the base's dtype."""
        stacks: dict[str, dict[int, Tensor]] = {}
        named = dict(self.adapted.model.named_parameters(remove_duplicate=False))
        for a in self.adapted.assignments:
            for full, index, tensor in _written(self.adapted, a):
                if index is None:
                    tensor = tensor.to(named[full].dtype).contiguous()
                    for name in (full, *self._aliases(full)):
                        yield name, tensor
                else:
                    stacks.setdefault(full, {})[index] = tensor.to(named[full].dtype)
        for full, parts in stacks.items():
            tensor = torch.stack([parts.get(k, old) for k, old in enumerate(named[full].detach().unbind(0))])
            for name in (full, *self._aliases(full)):
                yield name, tensor

    def model(self) -> nn.Module:
        """A copy of the base with the merged weights and nothing attached; broken ties are untied in it."""
        new = copy.deepcopy(self.adapted.model)
        session(new).rows = None
        for name in list(session(new).adapters):
            session(new).adapters[name].detach()
        made: dict[str, nn.Parameter] = {}
        for name, tensor in self.changed():
            made[name] = nn.Parameter(tensor, requires_grad=False)
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

    def _sources(self) -> dict[str, str]:
        """The parameters that change, each with the site whose tensors change it."""
        out: dict[str, str] = {}
        for a in self.adapted.assignments:
            for full in dict.fromkeys(f for f, _, _ in _written(self.adapted, a)):
                for name in (full, *self._aliases(full)):
                    out.setdefault(name, a.shares or a.site.name)
        return out

    def _tied(self, name: str) -> list[str]:
        """The other names of the same base parameter."""
        named = dict(self.adapted.model.named_parameters(remove_duplicate=False))
        return [n for n, p in named.items() if p is named[name] and n != name]

    def _still_tied(self, name: str) -> list[str]:
        return [t for t in self._tied(name) if self.sources.get(t) == self.sources[name]]

    def _aliases(self, name: str) -> list[str]:
        """The other names of the same parameter of the same module: an instance that stands at several places."""
        owner = {n: self.adapted.model.get_submodule(n.rpartition(".")[0]) for n in (name, *self._tied(name))}
        word = name.rpartition(".")[2]
        return [n for n, m in owner.items() if n != name and m is owner[name] and n.rpartition(".")[2] == word]

    @torch.no_grad()
    def _certify(self, probe: Any) -> Certificate:
        from .files import fingerprint

        model, plan = self.adapted.model, self.adapted.plan
        named = dict(model.named_parameters(remove_duplicate=False))
        count, lost, lost_at = 0, 0.0, ""
        for a in self.adapted.assignments:
            L, base = site_layer(self.adapted, a), a.site.leaf()
            for full, index, tensor in _written(self.adapted, a):
                old = named[full] if index is None else named[full][index]
                new = tensor.to(old.dtype)
                count += int((new != old).sum())
                if isinstance(L, Affine) and new.dim() >= 2:
                    change = a.site.written(delta(L.op, base.op).dense(), None)
                    wanted = next(iter(change.values())).double()
                    norm = float(torch.linalg.vector_norm(wanted))
                    off = float(torch.linalg.vector_norm((new.double() - old.double()) - wanted))
                    if norm > 0 and off / norm > lost:
                        lost, lost_at = off / norm, full
        untied = [n for n in self.names if len(self._still_tied(n)) < len(self._tied(n))]
        worst, mean, size = self._compare(default_probe(model) if probe is None else probe)
        base_print = fingerprint(model, plan.train_modules)
        return Certificate(
            len(self.adapted.assignments),
            len(set(self.names)),
            count,
            lost,
            lost_at,
            worst,
            mean,
            size,
            base_print,
            untied,
        )

    def _compare(self, probe: Any) -> tuple[float | None, float | None, float | None]:
        if probe is None:
            return None, None, None
        model, shared = self.adapted.model, session(self.adapted.model)
        args = probe if isinstance(probe, tuple) else () if isinstance(probe, dict) else (probe,)
        kwargs = probe if isinstance(probe, dict) else {}
        with Restore(shared, live=((self.adapted.name, 1.0),), off=False, rows=None):
            want = output(model(*args, **kwargs))
        with Restore(shared, off=True):
            # one name per parameter of a module: functional_call would not put back what it swaps twice
            new = {n: t for n, t in self.changed() if not any(other in self.names[: self.names.index(n)] for other in self._aliases(n))}
            got = output(functional_call(model, new, args, kwargs, tie_weights=False))
        gap = (got.double() - want.double()).abs()
        return float(gap.max()), float(gap.mean()), float(want.abs().max())


def _say_untied(model: nn.Module, untied: list[str]) -> None:
    config = getattr(model, "config", None)
    if untied and getattr(config, "tie_word_embeddings", None):
        config.tie_word_embeddings = False  # type: ignore[union-attr]


def _written(adapted: Adapted, a: Any) -> list[tuple[str, int | None, Tensor]]:
    """(parameter name, expert number or None, new value) for one site."""
    from .attach import _address

    module, _ = _address(a)
    out = []
    for word, tensor in a.site.merged(site_layer(adapted, a)).items():
        stem, _, index = word.partition("[")
        out.append((f"{module}.{stem}" if module else stem, int(index[:-1]) if index else None, tensor.detach()))
    return out


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
