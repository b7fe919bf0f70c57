"""A model with fewer numbers: its linear layers factorised, pruned or quantised, and what that cost."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import SpecError, StateMismatch
from .files.disk import commit, json_writer, read_json, read_tensors, tensors_writer
from .methods.compress import COMPRESSORS
from .methods.compress.afm_ctr import table
from .passes import Progress, forward_of
from .plan import one_of
from .probe import probe
from .sites import Site, find

CARD, TENSORS = "compressed.json", "compressed.safetensors"


class Factored(nn.Module):
    """y = up(down(x)): a linear layer as two. Adapters find both: "q_proj.down", "q_proj.up"."""

    def __init__(self, m: int, n: int, k: int, bias: bool, like: Tensor):
        super().__init__()
        kw: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        self.down, self.up = nn.Linear(n, k, bias=False, **kw), nn.Linear(k, m, bias=bias, **kw)
        self.in_features, self.out_features = n, m

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.up(self.down(x))
        return y

    def dense(self) -> nn.Linear:
        """The same as one layer: more numbers, for readers that know no factors."""
        m, n, bias = self.out_features, self.in_features, self.up.bias
        out = nn.Linear(n, m, bias=bias is not None, device=self.up.weight.device, dtype=self.up.weight.dtype)
        with torch.no_grad():
            out.weight.copy_(self.up.weight.float() @ self.down.weight.float())
            if bias is not None:
                out.bias.copy_(bias)
        return out


@dataclass
class Compressed:
    """What was done: per site the rank (None: dense) and |W - W'|_F / |W|_F, |(W - W') X| / |W X| where inputs were measured."""

    method: Any
    keep: float
    before: int
    after: int
    sites: dict[str, dict[str, Any]] = field(default_factory=dict)


@torch.no_grad()
def compress(
    model: nn.Module,
    method: str | Any = "svd_llm",
    ratio: float = 0.2,
    batches: Sequence[Any] = (),
    *,
    targets: Any = "all-linear",
    exclude: Any = (),
    ratios: Mapping[str, float] | None = None,
    sequential: bool = False,
    refit: bool = False,
    forward: Callable[[Any, Any], Any] | None = None,
    progress: Progress | None = None,
) -> Compressed:
    """Replace the weights of a model's linear layers, in place, by what a compressor makes of them; returns what that did.

    ratio: the share of each layer's numbers that is REMOVED (ratios: another one by site, 0: it stays; deltaw.search_ratios finds them).
    A factorised layer becomes two linear layers, `down` and `up`, where that has fewer numbers; a pruned one stays what it is. batches:
    calibration data, as for deltaw.probe; sites that read the same input share its measurement. sequential: layer after layer, each measured behind the ones that are
    compressed already (a pass over the batches for every layer). refit: `up` once more by least squares on all inputs, sum |W x - L R x|².
    Tied weights, heads and embeddings are left alone: name the layers. Errors: SpecError for data that is missing or a ratio outside (0, 1).
    """
    chosen: Any = one_of(COMPRESSORS, method, "weight")
    if bad := [v for v in (ratio, *(v for v in (ratios or {}).values() if v)) if not 0 < v < 1]:
        raise SpecError(f"ratio is the share that is removed, between 0 and 1; found {bad[0]}")
    sites = linear_sites(model, targets, exclude)
    if unknown := sorted(set(ratios or {}) - {s.name for s in sites}):
        raise SpecError(f"a ratio for '{unknown[0]}', which is no linear layer among the targets")
    needs = set(chosen.needs) | ({"inputs"} if refit else set())
    out = Compressed(chosen, 1 - ratio, count(model), 0)
    for group in layers(sites) if sequential and needs else [sites]:
        stats = measured(model, chosen, group, needs, batches, forward)
        for site in group:
            share = (ratios or {}).get(site.name, ratio)
            stays = {"rank": None, "error": 0.0, "kept": "its share is 0"}
            out.sites[site.name] = replaced(model, site, chosen, stats.get(site.name, {}), 1 - share, refit) if share else stays
            if progress is not None:
                progress(len(out.sites), len(sites))
    out.after = count(model)
    return out


def linear_sites(model: nn.Module, targets: Any, exclude: Any) -> list[Site]:
    """The linear layers among the targets; at least one."""
    sites = [s for s in find(model, targets, exclude) if isinstance(s.module, nn.Linear)]
    if not sites:
        raise SpecError("no linear layer among the targets")
    return sites


def measured(
    model: nn.Module, chosen: Any, sites: list[Site], needs: Collection[str], batches: Sequence[Any], forward: Callable[[Any, Any], Any] | None
) -> dict[str, dict[str, Tensor]]:
    """site -> what a compressor looks at there, on the model's device; nothing for one that looks at weights alone."""
    if not needs:
        return {}
    if not len(batches):
        raise SpecError(f"'{chosen.key}' looks at {', '.join(sorted(needs))}: give calibration batches")
    return probe(model, batches, [s.name for s in sites], sorted(needs), forward=forward or forward_of, keep=_device(model)).sites


def replaced(model: nn.Module, site: Site, chosen: Any, stats: dict[str, Tensor], keep: float, refit: bool) -> dict[str, Any]:
    """Do it at one site; what it lost."""
    layer: Any = site.module
    W = layer.weight.detach()
    made = chosen.weight(W.double() if W.dtype == torch.float64 else W.float(), stats, keep)
    if len(made) == 1:
        new, k = made[0], None
        layer.weight.copy_(new)
    else:
        L, R, shift = made
        if refit:
            M = stats["inputs"].to(R)
            L = torch.linalg.lstsq(R @ M @ R.mT, R @ M @ W.to(R).mT).solution.mT
        new, k = L @ R, L.shape[1]
        if k * sum(W.shape) >= W.numel():
            return {"rank": None, "error": 0.0, "kept": "the factors would have no fewer numbers"}
        factored = Factored(*W.shape, k, layer.bias is not None or shift is not None, W)
        factored.down.weight.copy_(R)
        factored.up.weight.copy_(L)
        if factored.up.bias is not None:
            factored.up.bias.copy_((0 if layer.bias is None else layer.bias) + (0 if shift is None else shift.to(W.dtype)))
        parent, _, name = site.name.rpartition(".")
        setattr(model.get_submodule(parent), name, factored.train(layer.training))
    off = W.double() - new.double()
    facts: dict[str, Any] = {"rank": k, "error": float(off.norm() / W.double().norm())}
    if "inputs" in stats:
        M = stats["inputs"].double().to(off.device)
        facts["output_error"] = float((((off @ M) * off).sum() / ((W.double() @ M) * W.double()).sum()).clamp(min=0).sqrt())
    return facts


@torch.no_grad()
def factored_table(layer: nn.Embedding, counts: Tensor, k: int) -> nn.Sequential:
    """An embedding of d numbers a row as one of k and a linear layer d <- k with a bias: e' = U Uᵀ (e - mu) + mu (AFM), mu and U from the
    rows weighted by `counts`, how often each occurs. rows k + d (k + 1) numbers instead of rows d. Error: the sum of the eigenvalues left out."""
    rows, d = layer.weight.shape
    if not 1 <= k <= d or counts.shape != (rows,):
        raise SpecError(f"a table of {rows} x {d} needs 1 <= k <= {d} and a count for every row; found k = {k}, counts {tuple(counts.shape)}")
    codes, U, mu = table(layer.weight, counts, k)
    kw: dict[str, Any] = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    out = nn.Sequential(nn.Embedding(rows, k, **kw), nn.Linear(k, d, **kw))
    for p, value in zip(out.parameters(), (codes, U, mu), strict=True):
        p.copy_(value)
    return out


def layers(sites: list[Site]) -> list[list[Site]]:
    """Sites in groups of one layer each, in the model's order."""
    from .sites.find import layer_index

    groups: dict[Any, list[Site]] = {}
    for site in sites:
        groups.setdefault(layer_index(site.name), []).append(site)
    return list(groups.values())


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def dense(model: nn.Module) -> nn.Module:
    """Every factored layer as one dense layer again, in place, for saving where factors are not known."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Factored):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, module.dense())
    return model


def save_compressed(model: nn.Module, directory: Any, facts: Mapping[str, Any] | None = None) -> Path:
    """All weights and which layers are factored, for load_compressed; atomically. The architecture is the caller's."""
    where = {n: [m.out_features, m.in_features, m.down.out_features] for n, m in model.named_modules() if isinstance(m, Factored)}
    state: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    seen: dict[int, str] = {}
    for name, t in model.state_dict().items():
        if t.data_ptr() in seen and t.numel():
            tied[name] = seen[t.data_ptr()]
        else:
            state[name] = t.detach().contiguous()
            seen[t.data_ptr()] = name
    card = {"factored": where, "tied": tied, "facts": json.loads(json.dumps(dict(facts or {})))}
    return commit(directory, {TENSORS: tensors_writer(state), CARD: json_writer(card)})


@torch.no_grad()
def load_compressed(model: nn.Module, directory: Any) -> nn.Module:
    """Put a saved compression onto a model of the same architecture, in place: all names and shapes must fit."""
    card, state = read_json(Path(directory) / CARD), read_tensors(Path(directory) / TENSORS)
    for name, (m, n, k) in card["factored"].items():
        parent, _, last = name.rpartition(".")
        old: Any = getattr(model.get_submodule(parent), last, None)
        if not isinstance(old, nn.Linear) or tuple(old.weight.shape) != (m, n):
            raise StateMismatch(f"{os.fspath(directory)}: '{name}' is no {m} x {n} linear layer of this model")
        setattr(model.get_submodule(parent), last, Factored(m, n, k, f"{name}.up.bias" in state, old.weight).train(old.training))
    wanted = model.state_dict()
    state |= {a: state[b] for a, b in card["tied"].items()}
    if odd := sorted(set(wanted) ^ set(state)):
        raise StateMismatch(f"{os.fspath(directory)} belongs to another model: '{odd[0]}' is on one side only")
    if odd := [k for k in wanted if wanted[k].shape != state[k].shape]:
        raise StateMismatch(f"{os.fspath(directory)}: '{odd[0]}': {tuple(wanted[odd[0]].shape)} expected, {tuple(state[odd[0]].shape)} found")
    model.load_state_dict(state)
    return model
