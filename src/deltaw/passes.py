"""The passes over batches that probes make: gradients of weights that are not trained, and what layers read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .errors import SpecError
from .methods.pca import IncrementalPCA
from .session import ATTRIBUTE, Restore
from .sites import Site
from .sites.reading import Readers, rows
from .sites.watch import Watch

Progress = Callable[[int, int | None], None]
Found = dict[str, dict[str, Tensor]]


# ---- batches


def parts(batch: Any) -> dict[str, Tensor]:
    """The tensors of a batch, by name or number."""
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


def loss_of(model: Any, batch: Any) -> Tensor:
    """The loss a model computes by itself."""
    value = getattr(_call(model, batch), "loss", None)
    if not isinstance(value, Tensor):
        raise SpecError("this model gives no .loss for these batches: pass loss=function(model, batch) to deltaw.probe")
    return value


def forward_of(model: Any, batch: Any) -> None:
    """A call without the labels."""
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


def _masks(batch: Any) -> tuple[Tensor | None, Tensor | None]:
    """(positions that are no padding, those of them that carry a label), where a batch tells."""
    found = parts(batch)
    real = found["attention_mask"].bool() if "attention_mask" in found else None
    if "labels" not in found:
        return real, real
    labelled = found["labels"] != -100
    return real, labelled if real is None or real.shape != labelled.shape else labelled & real


@contextmanager
def alone(model: nn.Module, seed: int) -> Iterator[None]:
    """Adapters off, nothing trained, random numbers (dropout) of its own; afterwards everything is as it was, running
    statistics of batch norms as well."""
    kept = [(b, b.clone()) for m in model.modules() if getattr(m, "track_running_stats", False) for b in m.buffers(recurse=False)]
    flags = {p: p.requires_grad for p in model.parameters()}
    modes = {m: m.training for m in model.modules()}
    shared, device = model.__dict__.get(ATTRIBUTE), next(model.parameters()).device
    others: Any = {"devices": []} if device.type == "cpu" else {"devices": [device], "device_type": device.type}
    off = None if shared is None else Restore(shared, off=True, now=True)
    with torch.random.fork_rng(**others):
        torch.manual_seed(seed)
        try:
            for p in flags:
                p.requires_grad_(False)
            yield
        finally:
            for p, flag in flags.items():
                p.requires_grad_(flag)
            for m, mode in modes.items():
                m.training = mode
            for buffer, value in kept:
                buffer.copy_(value)
            if off is not None:
                off.__exit__()


def _unseen(name: str) -> SpecError:
    return SpecError(f"no token of these batches reached {name}: probe more batches, or leave it out of the plan (exclude=...)")


# ---- gradients


def _rooted(module: nn.Module, args: Any, y: Any) -> Any:
    """No parameter is trained, so the graph begins at the first site that has nothing behind it."""
    wants = isinstance(y, Tensor) and y.is_floating_point() and torch.is_grad_enabled() and not y.requires_grad
    return y.detach().requires_grad_() if wants else None


def gradients(
    model: nn.Module, batches: Iterable[Any], ends: dict[str, list[tuple[Site, bool]]], loss: Callable[[Any, Any], Tensor],
    progress: Progress | None, keep: Any, squares: bool = False,
) -> Found:  # fmt: skip
    """The mean over batches of the gradient of every weight (squares: the sum of its entries' squares); ends: where it is used, and whether flipped."""
    watched: dict[str, list[Watch]] = {}
    count, totals = 0, dict[str, Tensor]()
    model.train()
    roots = [site.module.register_forward_hook(_rooted) for many in ends.values() for site, _ in many]
    try:
        for name, many in ends.items():
            watched[name] = []
            for site, flip in many:
                watched[name].append(Watch(site, flip, always=True, keep=keep))
        with torch.enable_grad():
            for batch, done in _walk(model, batches, progress):
                value = loss(model, batch)
                if not value.requires_grad:
                    raise SpecError(
                        f"the loss of these batches depends on no site ({', '.join(list(ends)[:3])} ...): they are not reached, or "
                        "gradient checkpointing cuts them off (the kind with use_reentrant=False does not)"
                    )
                value.backward()  # type: ignore[no-untyped-call]
                for name, watches in watched.items() if squares else ():
                    if seen := [w.sum for w in watches if w.sum is not None]:
                        _add(totals, name, sum(seen[1:], seen[0]).square())
                    for w in watches:
                        w.sum = None
                count += 1
                done()
    finally:
        for hook in roots + [w.hook for watches in watched.values() for w in watches]:
            hook.remove()
    out: Found = {}
    for name, watches in watched.items():
        if squares:
            if name not in totals:
                raise _unseen(name)
            out[name] = {"gradient": totals[name]}
            continue
        sums = [w.sum for w in watches if w.sum is not None]
        if not sums:
            raise _unseen(name)
        out[name] = {"gradient": sum(sums[1:], sums[0]) / count}
    return out


# ---- inputs


class Reading:
    """The pass that looks at inputs. counts: how many components are looked for at a site (of sites that share an input the
    first one's number counts). needed(found): how many of those it has found so far would be used."""

    def __init__(
        self, sites: list[Site], wanted: set[str], counts: dict[str, int], tau: float, keep: Any,
        needed: Callable[[Found], dict[str, int]] | None,
    ):  # fmt: skip
        self.sites, self.wanted, self.counts = sites, wanted, counts
        self.tau, self.keep, self.needed = tau, keep, needed
        self.sums: Found = {}
        self.tokens: dict[str, int] = {}
        self.pca: dict[str, IncrementalPCA] = {}
        self.still: set[str] = set()  # components that have settled are not looked at again
        self.real: Tensor | None = None
        self.labelled: Tensor | None = None
        self.leader: dict[str, str] = {}

    def run(self, model: nn.Module, batches: Iterable[Any], forward: Any, progress: Progress | None) -> Found:
        model.eval()
        readers = Readers(self.sites, self.take)
        self.leader, count = readers.leader, 0
        try:
            with torch.no_grad():
                for batch, done in _walk(model, batches, progress):
                    self.real, self.labelled = _masks(batch)
                    try:
                        forward(model, batch)
                    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # of the components of what was read
                        raise SpecError(f"what a layer reads is not finite; look for NaN in these batches ({error})") from error
                    count += 1
                    done()
                    if "components" in self.wanted and self.settled() and self.wanted == {"components"}:
                        break
        finally:
            readers.close()
        for site in self.sites:
            if not self.tokens.get(self.leader.get(site.name, ""), 0):
                raise _unseen(site.name)
        for name, sums in self.sums.items():
            for word in sums:
                sums[word] /= self.tokens[name] if word in ("inputs", "mean") else count
        for pca in self.pca.values():
            pca.flush()
        return self.found()

    def take(self, name: str, x: Tensor) -> None:
        X, sums = rows(x, self.real), self.sums.setdefault(name, {})
        self.tokens[name] = self.tokens.get(name, 0) + len(X)
        if not len(X):  # a batch that the router sends elsewhere, or all padding
            return
        if "inputs" in self.wanted:
            _add(sums, "inputs", (X.mT @ X).to(self.keep))
        if "mean" in self.wanted:
            _add(sums, "mean", X.sum(0).to(self.keep))
        if "scales" in self.wanted:
            _add(sums, "scales", X.abs().mean(0).to(self.keep))
        if "inputs_by_max" in self.wanted:
            X = X / X.max().abs()
            _add(sums, "inputs_by_max", (X.mT @ X).to(self.keep))
        if "components" in self.wanted and name not in self.still:
            if name not in self.pca:
                self.pca[name] = IncrementalPCA(min(self.counts[name], x.shape[-1]), self.tau)
            self.pca[name].add(rows(x, self.labelled))

    def found(self) -> Found:
        """What there is so far, by site; the same tensors for sites that share an input."""
        made = {}
        for name in dict.fromkeys(self.leader.values()):
            made[name], pca = dict(self.sums.get(name, {})), self.pca.get(name)
            if pca is not None and pca.components is not None:
                three = {"components": pca.components, "singular": pca.singular, "share": pca.share}
                made[name] |= {k: t.to(self.keep) for k, t in three.items()}
        return {name: dict(made[leader]) for name, leader in self.leader.items()}

    def settled(self) -> bool:
        """Have all components converged that would be used?"""
        need = {name: pca.k for name, pca in self.pca.items()}
        if self.needed is not None and all(pca.components is not None for pca in self.pca.values()):
            need = dict.fromkeys(self.pca, 0)
            for name, r in self.needed(self.found()).items():
                need[self.leader[name]] = max(need[self.leader[name]], r)
        self.still = {name for name, pca in self.pca.items() if bool(pca.converged[: need[name]].all())}
        return len(self.still) == len(self.pca) > 0


def _add(sums: dict[str, Tensor], word: str, new: Tensor) -> None:
    sums[word] = sums[word].add_(new) if word in sums else new
