"""What an initialisation wants to know of a model and its data: measured over batches, in bounded memory, kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from .methods.pca import IncrementalPCA
from .plan import Assignment, Plan, has_weight
from .session import ATTRIBUTE, Restore
from .sites import Site, find
from .sites.reading import Readers, rows
from .sites.watch import Watch
from .spec import Method, Start, change, scale_of, to_config

READ = ("inputs", "inputs_by_max", "components")
NEEDS = ("gradient", *READ, "original")
TENSORS, CARD = "stats.safetensors", "stats.json"
Progress = Callable[[int, int | None], None]


@dataclass
class Stats:
    """sites[name] holds what was measured at a site, by name: "gradient" (m, n), "inputs" (n, n), "components" (k, n) with
    "singular" and "share" (k), "original" (m, n). Sites that read the same input hold the same tensors."""

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
        return commit(directory, {TENSORS: tensors_writer(stored), CARD: json_writer({"sites": where, "about": self.about})})

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

    batches: what the model is called with, dicts, tuples or tensors; gone through once for gradients and once for inputs,
    so more than once if both are needed. needs: by default what the plan's init needs, out of
    - "gradient": the mean over batches of the gradient of the weight, in training mode. loss(model, batch): by default
      model(**batch).loss. No weight has a .grad: on the model's device there is one layer's gradient at a time, the sums
      are on the device `keep`.
    - "inputs": XᵀX / number of tokens. "inputs_by_max": the mean over batches of XᵀX, each X divided by its largest entry.
      Padding (attention_mask) does not count. forward(model, batch): by default a call without the labels.
    - "components": the leading principal components of the tokens with a label, and their shares of the variance; reading
      ends when all that would be used have converged (cosine with the batch before >= tau).
    - "original": the weights of `original`, an unquantised model or its state dict.
    An adapter on the model is left out meanwhile. cache: a directory; the same base, batches (or `data`, a name for them) and
    options are read from there instead of measured again (what loss and forward do is not looked into: put it into `data`).
    progress(done, total or None). In several processes everyone
    measures for itself: give all the same batches. Errors: SpecError for a site that no token reached, or that gave NaN.
    """
    plan = where if isinstance(where, Plan) else None
    wanted = frozenset(needs if needs is not None else measured(plan.init) if plan is not None else ())
    if bad := sorted(wanted - set(NEEDS)):
        raise SpecError(f"a probe cannot measure '{bad[0]}'{nearest(bad[0], NEEDS)} (known: {', '.join(NEEDS)})")
    if not wanted:
        raise SpecError("nothing to measure: the plan's init looks at the weights only; name what you want in needs=(...)")
    assigned = places(model, plan) if plan is not None else [Assignment(s, None) for s in find(model, where)]  # type: ignore[arg-type]
    if cache is not None or (len(wanted & set(READ)) and "gradient" in wanted and not isinstance(batches, Sequence)):
        batches = list(batches)
    counts = _counts(plan, assigned, components)
    tau = getattr(plan.init, "tau", tau) if plan is not None else tau
    about: dict[str, Any] = {"needs": sorted(wanted), "seed": seed}
    if "components" in wanted:
        about |= {"components": counts, "tau": tau, "plan": None if plan is None or plan.init is None else to_config(plan.init)}
    folder = None
    if cache is not None:
        about |= {"base": fingerprint(model), "data": data or digest(batches), "sites": [a.site.name for a in assigned]}
        folder = Path(cache) / hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]
        if (folder / CARD).is_file():
            return Stats.load(folder)
    stats = Stats({a.site.name: {} for a in assigned if a.shares is None}, about)
    with _alone(model, seed):
        if "gradient" in wanted:
            ends = {n: [(a.site, a.flip) for a in assigned if (a.shares or a.site.name) == n] for n in stats.sites}
            _gradients(model, batches, ends, loss or _loss, progress, keep, stats)
        if wanted & set(READ):
            reading = _Reading(plan, {a.site.name: a for a in assigned if a.shares is None}, wanted, counts, tau, keep)
            reading.run(model, batches, forward or _forward, progress, stats)
    if "original" in wanted:
        _originals([a.site for a in assigned if a.shares is None], original, stats)
    for site, found in stats.sites.items():
        if lost := [w for w, t in found.items() if not bool(torch.isfinite(t).all())]:
            raise SpecError(f"{site}: its {lost[0]} is not finite; look for NaN in the loss or the inputs of these batches")
    if folder is not None and not folder.exists():
        stats.save(folder)
    return stats


def places(model: nn.Module, plan: Plan) -> list[Assignment]:
    """The sites of a plan that an init can look at; both ends of a tied weight."""
    return [a for a in plan.resolve(model) if has_weight(a)]


def ready(model: nn.Module, plan: Plan, stats: Stats | None) -> Plan:
    """The plan as it is attached: with the ranks that its init gives. SpecError where the init needs what nobody measured."""
    wanted = measured(plan.init)
    ranks = getattr(plan.init, "ranks", None)
    if not wanted and ranks is None:
        return plan
    firsts = [a for a in places(model, plan) if a.shares is None]
    for a in firsts:
        if missing := sorted(wanted - set({} if stats is None else stats.sites.get(a.site.name, {}))):
            raise SpecError(
                f"init '{plan.init.key}' needs the {missing[0]} of every site, and there is none for {a.site.name}: "
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
            exact[a.site.name] = _of_rank(a.method, given[a.site.name], getattr(plan.init, "keeps_scale", False))
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
    """A name for batches, from all their numbers."""
    h = hashlib.sha256()
    for batch in batches:
        for name, t in sorted(_parts(batch).items()):
            h.update(f"{name}{t.dtype}{tuple(t.shape)}".encode() + raw(t))
    return h.hexdigest()[:16]


# ---- batches


def _parts(batch: Any) -> dict[str, Tensor]:
    if isinstance(batch, Tensor):
        return {"": batch}
    pairs = batch.items() if isinstance(batch, Mapping) else enumerate(batch)
    return {str(k): v for k, v in pairs if isinstance(v, Tensor)}


def _moved(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {k: _moved(v, device) for k, v in batch.items()}
    return type(batch)(_moved(v, device) for v in batch) if isinstance(batch, (tuple, list)) else batch


def _call(model: Any, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)


def _loss(model: Any, batch: Any) -> Tensor:
    value = getattr(_call(model, batch), "loss", None)
    if not isinstance(value, Tensor):
        raise SpecError("this model gives no .loss for these batches: pass loss=function(model, batch) to deltaw.probe")
    return value


def _forward(model: Any, batch: Any) -> None:
    _call(model, {k: v for k, v in batch.items() if k != "labels"} if isinstance(batch, Mapping) else batch)


def _walk(model: nn.Module, batches: Iterable[Any], progress: Progress | None) -> Iterator[tuple[Any, Callable[[], None]]]:
    """Every batch where the model is, and what to call when it is done."""
    device = next(model.parameters()).device
    total = len(batches) if isinstance(batches, Sequence) else None
    count = 0
    for count, batch in enumerate(batches, 1):
        yield _moved(batch, device), partial(progress, count, total) if progress is not None else lambda: None
    if not count:
        raise SpecError("deltaw.probe was given no batches (an iterator that had been used up before?)")


@contextmanager
def _alone(model: nn.Module, seed: int) -> Iterator[None]:
    """Adapters off, nothing trained, random numbers (dropout) of its own; afterwards everything is as it was."""
    flags, mode, shared = {p: p.requires_grad for p in model.parameters()}, model.training, model.__dict__.get(ATTRIBUTE)
    device = next(model.parameters()).device
    others = {"devices": []} if device.type in ("cpu", "meta") else {"devices": [device], "device_type": device.type}
    off = None if shared is None else Restore(shared, off=True, now=True)
    with torch.random.fork_rng(**others):  # type: ignore[arg-type]
        torch.manual_seed(seed)
        try:
            for p in flags:
                p.requires_grad_(False)
            yield
        finally:
            for p, flag in flags.items():
                p.requires_grad_(flag)
            model.train(mode)
            if off is not None:
                off.__exit__()


# ---- the passes


def _rooted(module: nn.Module, args: Any, y: Any) -> Any:
    """No parameter is trained, so the graph begins at the first site that has nothing behind it."""
    wants = isinstance(y, Tensor) and y.is_floating_point() and torch.is_grad_enabled() and not y.requires_grad
    return y.detach().requires_grad_() if wants else None


def _gradients(
    model: nn.Module, batches: Iterable[Any], ends: dict[str, list[tuple[Site, bool]]], loss: Callable[[Any, Any], Tensor],
    progress: Progress | None, keep: Any, stats: Stats,
) -> None:  # fmt: skip
    roots = [site.module.register_forward_hook(_rooted) for many in ends.values() for site, _ in many]
    watched: dict[str, list[Watch]] = {}
    count = 0
    model.train()
    try:
        for name, many in ends.items():
            watched[name] = []
            for site, flip in many:
                watched[name].append(Watch(site, flip, always=True, keep=keep))
        with torch.enable_grad():
            for batch, done in _walk(model, batches, progress):
                loss(model, batch).backward()  # type: ignore[no-untyped-call]
                count += 1
                done()
    finally:
        for hook in roots + [w.hook for many in watched.values() for w in many]:
            hook.remove()
    for name, many in watched.items():
        sums = [w.sum for w in many if w.sum is not None]
        if not sums:
            raise _unseen(name)
        stats.sites[name]["gradient"] = torch.stack(sums).sum(0) / count if len(sums) > 1 else sums[0] / count


def _unseen(name: str) -> SpecError:
    return SpecError(f"no token of these batches reached {name}: probe more batches, or leave it out of the plan (exclude=...)")


class _Reading:
    """The pass that looks at inputs."""

    def __init__(
        self, plan: Plan | None, assigned: dict[str, Assignment], wanted: frozenset[str], counts: dict[str, int], tau: float, keep: Any
    ):
        self.plan, self.assigned, self.wanted, self.counts, self.tau, self.keep = plan, assigned, wanted, counts, tau, keep
        self.sums: dict[str, dict[str, Tensor]] = {}
        self.tokens: dict[str, int] = {}
        self.pca: dict[str, IncrementalPCA] = {}
        self.still: set[str] = set()  # components that are settled are not looked at again
        self.real: Tensor | None = None
        self.labelled: Tensor | None = None
        self.readers: Readers | None = None

    def run(self, model: nn.Module, batches: Iterable[Any], forward: Any, progress: Progress | None, stats: Stats) -> None:
        model.eval()
        self.readers = Readers([a.site for a in self.assigned.values()], self.take)
        count = 0
        try:
            with torch.no_grad():
                for batch, done in _walk(model, batches, progress):
                    self.real, self.labelled = _masks(batch)
                    forward(model, batch)
                    count += 1
                    done()
                    if "components" in self.wanted and self.settled() and self.wanted.isdisjoint(READ[:2]):
                        break
        finally:
            self.readers.close()
        leader = self.readers.leader
        for name in self.assigned:
            if name not in leader or (name not in self.tokens and leader[name] not in self.tokens):
                raise _unseen(name)
        for name, word in ((n, w) for n in self.sums for w in self.sums[n]):
            self.sums[name][word] /= self.tokens[name] if word == "inputs" else count
        for pca in self.pca.values():
            pca.flush()
        for name in self.assigned:
            stats.sites[name] |= {**self.sums.get(leader[name], {}), **self.parts(leader[name])}

    def take(self, name: str, x: Tensor) -> None:
        X = rows(x, self.real)
        self.tokens[name] = self.tokens.get(name, 0) + len(X)
        sums = self.sums.setdefault(name, {})
        if "inputs" in self.wanted:
            _add(sums, "inputs", (X.mT @ X).to(self.keep))
        if "inputs_by_max" in self.wanted:
            X = X / X.max().abs()
            _add(sums, "inputs_by_max", (X.mT @ X).to(self.keep))
        if "components" in self.wanted and name not in self.still:
            if name not in self.pca:
                self.pca[name] = IncrementalPCA(min(self.counts[name], x.shape[-1]), self.tau)
            self.pca[name].add(rows(x, self.labelled))

    def parts(self, leader: str) -> dict[str, Tensor]:
        pca = self.pca.get(leader)
        if pca is None or pca.components is None:
            return {}
        found = {"components": pca.components, "singular": pca.singular, "share": pca.share}
        return {k: t.to(self.keep) for k, t in found.items()}

    def settled(self) -> bool:
        """Have all components converged that would be used, if the ranks were given out now?"""
        assert self.readers is not None
        leader = self.readers.leader
        need = {n: self.pca[n].k for n in self.pca}
        ranks = getattr(self.plan.init, "ranks", None) if self.plan is not None else None
        if ranks is not None and all(p.components is not None for p in self.pca.values()):
            assert self.plan is not None
            found = {n: self.parts(leader[n]) for n in self.assigned if n in leader}
            need = dict.fromkeys(self.pca, 0)
            for name, r in ranks(starts(self.plan, [self.assigned[n] for n in found]), found).items():
                need[leader[name]] = max(need[leader[name]], r)
        self.still = {n for n, pca in self.pca.items() if bool(pca.converged[: need[n]].all())}
        return len(self.still) == len(self.pca) > 0


def _add(sums: dict[str, Tensor], word: str, new: Tensor) -> None:
    sums[word] = sums[word].add_(new) if word in sums else new


def _masks(batch: Any) -> tuple[Tensor | None, Tensor | None]:
    """(positions that are no padding, those of them that carry a label), where a batch tells."""
    parts = _parts(batch)
    real = parts["attention_mask"].bool() if "attention_mask" in parts else None
    if "labels" not in parts:
        return real, real
    labelled = parts["labels"] != -100
    return real, labelled if real is None or real.shape != labelled.shape else labelled & real


def _counts(plan: Plan | None, assigned: list[Assignment], components: int) -> dict[str, int]:
    """How many components are looked for at every site: what the init says, or what was asked for; sites that turn out to
    share an input get the first one's number."""
    asks = getattr(plan.init, "components", None) if plan is not None else None

    def of(method: Method) -> int:
        return int(asks(innermost(method).r)) if asks is not None else components  # type: ignore[attr-defined]

    return {a.site.name: of(a.method) for a in assigned}


def _originals(sites: list[Site], original: Any, stats: Stats) -> None:
    if original is None:
        raise SpecError("this init compares the base with the weights before quantisation: pass original=(that model, or its state dict)")
    state: Mapping[str, Tensor] = original.state_dict() if isinstance(original, nn.Module) else original
    for site in sites:
        if (key := f"{site.name}.weight") not in state:
            raise SpecError(f"the original weights have no '{key}'{nearest(key, state)}")
        W = state[key].detach()
        W = W.mT if site.transposed else W
        if tuple(W.shape) != tuple(site.shape):
            raise SpecError(f"{site.name}: its original weight is {tuple(W.shape)}; the model's is {tuple(site.shape)}")
        stats.sites[site.name]["original"] = W
