"""What an initialisation wants to know of a model and its data: measured over batches, in bounded memory, kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from re import escape
from typing import Any

import torch
from torch import Tensor, nn

from .errors import SpecError, nearest
from .files.disk import commit, json_writer, raw, read_json, read_tensors, tensors_writer
from .files.fingerprint import fingerprint
from .methods.init import innermost, measured
from .passes import Progress, Reading, alone, forward_of, gradients, loss_of
from .plan import Assignment, Plan, has_weight
from .sites import Site, find
from .spec import Method, Start, change, scale_of, to_config

READ = ("inputs", "inputs_by_max", "components", "mean", "scales")
NEEDS = ("gradient", "fisher", *READ, "original")
TENSORS, CARD = "stats.safetensors", "stats.json"


@dataclass
class Stats:
    """sites[name] holds what was measured at a site, by name: "gradient" and "fisher" (m, n), "inputs" (n, n), "components" (k, n) with
    "singular" and "share" (k), "mean" and "scales" (n), "original" (m, n). Sites that read the same input hold the same tensors."""

    sites: dict[str, dict[str, Tensor]]
    about: dict[str, Any] = field(default_factory=dict)

    def save(self, directory: Any) -> Path:
        """Write stats.safetensors and stats.json, atomically; a tensor that sites share is written once."""
        stored: dict[str, Tensor] = {}
        keys: dict[int, str] = {}
        for site, found in self.sites.items():
            for word, t in found.items():
                stored.setdefault(keys.setdefault(id(t), f"{site}.{word}"), t)
        where = {site: {word: keys[id(t)] for word, t in found.items()} for site, found in self.sites.items()}
        return commit(
            directory, {TENSORS: tensors_writer(stored), CARD: json_writer({"sites": where, "about": self.about})}
        )

    def add(self, found: dict[str, dict[str, Tensor]]) -> None:
        """More of every site. SpecError for what is not finite."""
        for site, new in found.items():
            if lost := [w for w, t in new.items() if not bool(torch.isfinite(t).all())]:
                raise SpecError(f"{site}: its {lost[0]} is not finite; look for NaN in the loss or the inputs of these batches")
            self.sites[site] |= new

    @classmethod
    def load(cls, directory: Any) -> Stats:
        card, stored = read_json(Path(directory) / CARD), read_tensors(Path(directory) / TENSORS)
        return cls({s: {w: stored[k] for w, k in found.items()} for s, found in card["sites"].items()}, card["about"])


def probe(
    model: nn.Module,
    batches: Iterable[Any],
    where: Plan | Any,
    needs: Sequence[str] | None = None,
    *,
    loss: Callable[[Any, Any], Tensor] | None = None,
    forward: Callable[[Any, Any], Any] | None = None,
    components: int = 16,
    tau: float = 0.99,
    original: nn.Module | Mapping[str, Tensor] | None = None,
    cache: Any = None,
    data: str | None = None,
    progress: Progress | None = None,
    keep: torch.device | str = "cpu",
    seed: int = 0,
) -> Stats:
    """Measure what an init needs at every site of a plan (or of targets), e.g. deltaw.attach(model, plan, stats=probe(...)).

    batches: what the model is called with, dicts, tuples or tensors; gone through once for gradients and once for inputs. needs: by default what the plan's init needs, out of
    - "gradient": the mean over batches of the gradient of the weight, in training mode. loss(model, batch): by default
      model(**batch).loss. No weight has a .grad: on the model's device there is one layer's gradient at a time, the sums
      are on the device `keep`.
    - "fisher": the sum over batches of G * G, G the gradient of a batch: the Fisher diagonal where batches are of one example each. Of `original`
      where that is a model: the codes of LQ-LoRA are those of W without its low-rank part, which is no model to differentiate.
    - "inputs": XᵀX / number of tokens. "inputs_by_max": the mean over batches of XᵀX, each X divided by its largest entry.
      Padding (attention_mask) does not count. forward(model, batch): by default a call without the labels.
    - "mean": the mean token (n). "scales": the mean over batches of the mean |x_j| (n).
    - "components": the leading principal components of the tokens with a label, and their shares of the variance; reading
      ends when all that would be used have converged (cosine with the batch before >= tau).
    - "original": the weights of `original`, an unquantised model or its state dict.
    An adapter on the model is left out meanwhile. cache: a directory; the same base, batches (or `data`, a name for them) and
    options are read from there instead of measured again (what loss and forward do is not looked into: put it into `data`).
    progress(done, total or None). In several processes everyone measures for itself: give all the same batches.
    Errors: SpecError for a site that no token reached, or that gave NaN.
    """
    plan = where if isinstance(where, Plan) else None
    init = plan.init if plan is not None else None
    wanted = set(needs if needs is not None else needs_of(plan) if plan is not None else ())
    if bad := sorted(wanted - set(NEEDS)):
        raise SpecError(f"a probe cannot measure '{bad[0]}'{nearest(bad[0], NEEDS)} (known: {', '.join(NEEDS)})")
    if not wanted:
        raise SpecError("nothing to measure: no init, or one that looks at the weights only; name what you want in needs=(...)")
    assigned = _assigned(model, where)
    firsts = [a for a in assigned if a.shares is None]
    stats = Stats({a.site.name: {} for a in firsts})
    if fresh := wanted - {"original"}:
        asks = getattr(init, "components", None)
        counts = {a.site.name: components if asks is None else asks(innermost(a.method).r) for a in firsts}  # type: ignore[attr-defined]
        tau = getattr(init, "tau", tau)
        stats.about = {"needs": sorted(fresh), "sites": list(stats.sites), "seed": seed}
        if "components" in fresh:
            stats.about |= {"components": counts, "tau": tau, "init": None if init is None else to_config(init)}
        if cache is not None or len({w if w not in READ else "" for w in fresh}) > 1:
            batches = list(batches)
        trained = original if "fisher" in fresh and isinstance(original, nn.Module) else model
        if trained is not model:
            stats.about["fisher of"] = fingerprint(trained)
        folder = None if cache is None else Path(cache) / _key(stats.about, model, data or digest(batches))
        if folder is not None and (folder / CARD).is_file():
            stats = Stats.load(folder)
        else:
            needed = None
            if plan is not None and "components" in measured(init) and (ranks := chooser(plan)) is not None:
                needed = partial(ranks, starts(plan, firsts))
            with alone(model, seed):
                if "gradient" in fresh:
                    stats.add(gradients(model, batches, _ends(assigned), loss or loss_of, progress, keep))
                if reads := fresh & set(READ):
                    reading = Reading([a.site for a in firsts], reads, counts, tau, keep, needed)
                    stats.add(reading.run(model, batches, forward or forward_of, progress))
            if "fisher" in fresh:
                there = _ends(assigned if trained is model else _assigned(trained, where))
                with alone(trained, seed):
                    squares = gradients(trained, batches, there, loss or loss_of, progress, keep, squares=True)
                stats.add({name: {"fisher": found["gradient"]} for name, found in squares.items()})
            if folder is not None and not folder.exists():
                stats.save(folder)
    if "original" in wanted:
        stats.add(_originals([a.site for a in firsts], original))
    return stats


def _assigned(model: nn.Module, where: Plan | Any) -> list[Assignment]:
    """The sites of a plan, or of targets."""
    return places(model, where) if isinstance(where, Plan) else [Assignment(s, None) for s in find(model, where)]  # type: ignore[arg-type]


def _ends(assigned: list[Assignment]) -> dict[str, list[tuple[Site, bool]]]:
    """Where each weight is used, and whether flipped."""
    out: dict[str, list[tuple[Site, bool]]] = {}
    for a in assigned:
        out.setdefault(a.shares or a.site.name, []).append((a.site, a.flip))
    return out


def _key(about: dict[str, Any], model: nn.Module, data: str) -> str:
    about |= {"base": fingerprint(model), "dtype": str(next(model.parameters()).dtype), "data": data}
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]


def _originals(sites: list[Site], original: Any) -> dict[str, dict[str, Tensor]]:
    if original is None:
        raise SpecError("'original' is the weights before quantisation: pass original=(the model that has them, or its state dict)")
    state: Mapping[str, Tensor] = original.state_dict() if isinstance(original, nn.Module) else original
    out = {}
    for site in sites:
        if (key := f"{site.name}.weight") not in state:
            raise SpecError(f"the original weights have no '{key}'{nearest(key, state)}")
        W = state[key].detach()
        W = W.mT if site.transposed else W
        if tuple(W.shape) != tuple(site.shape):
            raise SpecError(f"{site.name}: its original weight is {tuple(W.shape)}; the model's is {tuple(site.shape)}")
        out[site.name] = {"original": W}
    return out


def needs_of(plan: Plan) -> frozenset[str]:
    """What the plan's init and its rank policy want measured."""
    return measured(plan.init) | measured(plan.ranks)


def asking(plan: Plan) -> list[str]:
    """Who wants it."""
    return [f"{word} '{x.key}'" for word, x in (("init", plan.init), ("rank policy", plan.ranks)) if measured(x)]


def chooser(plan: Plan) -> Any:
    """The function that gives sites their ranks: the policy's, or that of an init which does so too."""
    return getattr(plan.init if plan.ranks is None else plan.ranks, "ranks", None)


def places(model: nn.Module, plan: Plan) -> list[Assignment]:
    """The sites of a plan that an init can look at; both ends of a tied weight."""
    return [a for a in plan.resolve(model) if has_weight(a)]


def ready(model: nn.Module, plan: Plan, stats: Stats | None) -> Plan:
    """The plan as it is attached: with the ranks that its init gives. SpecError where the init needs what nobody measured."""
    wanted = needs_of(plan)
    ranks = chooser(plan)
    if not wanted and ranks is None:
        return plan
    if ranks is not None and not needs_of(plan):
        stats = stats or Stats({a.site.name: {} for a in places(model, plan)})
    firsts = [a for a in places(model, plan) if a.shares is None]
    for a in firsts:
        if missing := sorted(wanted - set({} if stats is None else stats.sites.get(a.site.name, {}))):
            raise SpecError(
                f"{' and '.join(asking(plan))} needs the {missing[0]} of every site, and there is none for {a.site.name}: "
                "stats = deltaw.probe(model, batches, plan), then deltaw.attach(model, plan, stats=stats). "
                "`deltaw train` and deltaw.train.run do that by themselves, with their training data"
            )
    if ranks is None or stats is None:
        return plan
    given, exact = ranks(starts(plan, firsts), stats.sites), dict[str, Any]()
    for site in find(model, plan.targets, plan.exclude, plan.layers, plan.method.sites):  # type: ignore[union-attr]
        exact[site.name] = None  # left out by an override
    for a in plan.resolve(model):
        if a.site.name in exact:
            exact[a.site.name] = exact[a.shares] if a.shares is not None else a.method
        if a.site.name in exact and a.site.name in given:
            exact[a.site.name] = _of_rank(a.method, given[a.site.name], getattr(plan.ranks or plan.init, "keeps_scale", False))
    return replace(plan, overrides={r"\A" + escape(name): method for name, method in exact.items()})


def _of_rank(method: Method, r: int, keeps_scale: bool) -> Method | None:
    """The method at another rank, with another alpha if s is to stay; None at rank 0."""
    if r == 0:
        return None
    new: Any = change(method, {"r": r})
    if keeps_scale:
        new = change(new, {"alpha": innermost(new).alpha * scale_of(method) / scale_of(new)})  # type: ignore[attr-defined]
    return new  # type: ignore[no-any-return]


def starts(plan: Plan, assigned: list[Assignment]) -> list[Start]:
    """What an init sees of every site when it sets ranks."""
    return [Start(a.site.name, a.site.kind, a.site.leaf().op, plan.seed, a.method) for a in assigned]


def digest(batches: Iterable[Any]) -> str:
    """A name for batches, from all their numbers, however deep in lists and dicts they are."""
    h = hashlib.sha256()
    for batch in batches:
        for name, t in _leaves(batch):
            h.update(name.encode())
            if isinstance(t, Tensor):
                h.update(f"{t.dtype}{tuple(t.shape)}".encode() + raw(t))
            else:
                h.update(t.tobytes() if hasattr(t, "tobytes") else repr(t).encode())
    return h.hexdigest()[:16]


def _leaves(batch: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(batch, Mapping):
        for k in sorted(batch, key=str):
            yield from _leaves(batch[k], f"{name}/{k}")
    elif isinstance(batch, (tuple, list)):
        for i, part in enumerate(batch):
            yield from _leaves(part, f"{name}/{i}")
    else:
        yield name, batch
