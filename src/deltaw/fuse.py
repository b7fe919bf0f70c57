"""One adapter at a time inside the weights of a copy, exchanged in place and taken out bit for bit."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .errors import NotMergeable, StateMismatch, TargetError, nearest
from .files import fingerprint, load
from .merge import shared_names, sources
from .merging import Change, changes, high
from .ops import Op, Open, delta
from .session import ATTRIBUTE, session
from .sites import is_ours

if TYPE_CHECKING:
    from .attach import Adapted


@Open[tuple[Tensor, Tensor] | None]
def entries(op: Op) -> tuple[Tensor, Tensor] | None:
    """(positions, values) of an operator that is zero elsewhere: flat positions in m x n, each once; else None.

    A node says so by an attribute `entries`; others may be registered here.
    """
    return getattr(op, "entries", None)


@dataclass
class Patch:
    """New values for one parameter: at `where` (flat positions, sorted) or, where that is None, everywhere; and the
    base's values there. Writing either is idempotent."""

    owner: nn.Module
    word: str
    index: int | None
    new: Tensor
    old: Tensor
    where: Tensor | None = None

    @property
    def place(self) -> tuple[int, str, int | None]:
        return id(self.owner), self.word, self.index

    def write(self, values: Tensor) -> None:
        p = self.owner._parameters[self.word]
        assert p is not None
        own = p.detach() if self.index is None else p.detach()[self.index]
        if self.where is None:
            own.copy_(values)
        else:
            own.view(-1).put_(self.where, values)


@dataclass
class Prepared:
    """An adapter as patches; and, for one that is attached somewhere, the versions of the tensors it was made from."""

    patches: list[Patch]
    of: Adapted | None = None
    versions: list[tuple[Tensor, int]] = field(default_factory=list)

    def stale(self) -> bool:
        return any(t._version != version for t, version in self.versions)

    def report(self) -> dict[str, int]:
        """Patches, how many of them are sparse, the entries a switch writes, and the bytes held for it."""
        tensors = [t for p in self.patches for t in (p.new, p.where) if t is not None]
        tensors += [p.old for p in self.patches if p.where is not None]
        return {
            "patches": len(self.patches),
            "sparse": sum(p.where is not None for p in self.patches),
            "entries": sum(p.new.numel() for p in self.patches),
            "bytes": sum(t.numel() * t.element_size() for t in tensors),
        }


class Fused:
    """A copy of a model that carries one adapter at a time in its own weights.

        live = deltaw.Fused(model)     # the base, nothing attached; `model` itself is never written to
        live.switch("a")               # an adapter of `model` by name, an Adapted, a directory, or None
        live.model(...)                # a plain module at the speed of the base
        live.restore()                 # the base again, bit for bit

    The first switch to an adapter prepares it (`prepare`): its new values in the layout and dtype of the copy. A sparse
    delta is K new values and the K they replace, and costs that much to switch; of any other delta whole new weights are
    held, beside one copy of the base's. Restoring writes saved bytes, it never subtracts. An adapter that has been
    trained on since is prepared again. Do not write to the weights of `live.model` in other ways.
    """

    def __init__(self, model: nn.Module):
        self.source = model
        self.model = bare(model)
        self.base = fingerprint(self.model)
        self.active: str | None = None
        self.ready: dict[str, Prepared] = {}
        self._names = shared_names(self.model)
        self._inside: list[Patch] = []  # what is, or may be, in the weights now
        self._kept: dict[tuple[int, int | None], Tensor] = {}  # the base's values of wholly replaced parameters

    def switch(self, what: str | Path | Adapted | None) -> None:
        """Put this adapter into the weights in place of the one there; None: the base.

        Raises TargetError for a name that is neither prepared nor attached nor a directory, and what `prepare` raises.
        """
        if what is None:
            self.restore()
            return
        self._enter(self._find(what))

    @torch.no_grad()
    def _enter(self, name: str) -> None:
        self.active = None
        there = {p.place: p for p in self._inside}
        patches = self.ready[name].patches
        for patch in patches:
            earlier = there.pop(patch.place, None)
            if earlier is not None and patch.where is not None:
                earlier.write(earlier.old)  # just before its successor: the weight is in the cache for both
            self._inside.append(patch)  # first: should writing be interrupted, restoring still mends it
            patch.write(patch.new)
        for earlier in there.values():
            earlier.write(earlier.old)
        self._inside = list(patches)
        self.active = name

    @torch.no_grad()
    def restore(self) -> None:
        """The base, bit for bit."""
        self.active = None
        for patch in self._inside:
            patch.write(patch.old)
        self._inside = []

    def prepare(self, what: str | Path | Adapted, name: str | None = None) -> str:
        """Make an adapter ready, again if it is already, and return its name here (`name`, or its own; a directory's path).

        Raises NotMergeable where no weight equals it, or where it changes one end only of a weight the copy has once;
        StateMismatch for another base.
        """
        inside = self.active
        self.restore()  # new values are made from the base's
        try:
            key, done = self._prepared(what)
            self.ready[name or key] = done
        finally:
            if inside is not None:
                self._enter(inside)
        return name or key

    def forget(self, name: str) -> None:
        """Drop what is held of an adapter; one that is active is taken out first."""
        if name == self.active:
            self.restore()
        del self.ready[self._known(name)]

    def _known(self, name: str) -> str:
        if name not in self.ready:
            raise TargetError(f"no adapter '{name}' is ready here{nearest(name, self.ready)}; ready: {', '.join(self.ready) or 'none'}")
        return name

    def _find(self, what: str | Path | Adapted) -> str:
        """The name under which it is ready; prepared first where it is not, or no longer."""
        if not isinstance(what, (str, Path)):
            ready = [name for name, done in self.ready.items() if done.of is what and not done.stale()]
            return ready[0] if ready else self.prepare(what)
        done = self.ready.get(str(what))
        return str(what) if done is not None and not done.stale() else self.prepare(what)

    def _attached(self) -> dict[str, Adapted]:
        found = self.source.__dict__.get(ATTRIBUTE)
        return found.adapters if found is not None else {}

    def _prepared(self, what: str | Path | Adapted) -> tuple[str, Prepared]:
        if not isinstance(what, (str, Path)):
            versions = [(t, t._version) for t in what.state().values()]
            return what.name, Prepared(self._patches(what), what, versions)
        attached = self._attached()
        if str(what) in attached:
            return self._prepared(attached[str(what)])
        if not Path(what).is_dir():
            raise TargetError(
                f"'{what}' is neither an adapter of the model{nearest(str(what), [*attached, *self.ready])} nor a directory; "
                f"attached: {', '.join(attached) or 'none'}"
            )
        return str(what), Prepared(self._patches(load(self._twin(), what)))

    def _twin(self) -> nn.Module:
        """The copy once more, on the same parameters: a place to attach to that is not in anybody's forward."""
        shared: dict[int, Any] = {id(t): t for t in (*self.model.parameters(), *self.model.buffers())}
        return copy.deepcopy(self.model, shared)

    @torch.no_grad()
    def _patches(self, adapted: Adapted) -> list[Patch]:
        here = fingerprint(adapted.model)
        if here != self.base:
            what = "structure" if here["structure"] != self.base["structure"] else "content"
            raise StateMismatch(
                f"adapter '{adapted.name}': it is attached to another base than this copy was made of ({what} differs); "
                "make a Fused of that model"
            )
        tied, aliases = self._names
        source = sources(adapted, aliases)
        out: list[Patch] = []
        seen: set[tuple[int, int | None]] = set()
        for a in adapted.assignments:
            for change in changes(adapted, a):
                for other in tied[change.name]:
                    if source.get(other) != source[change.name]:
                        raise NotMergeable(
                            f"{change.name}: '{adapted.name}' changes this end of a tied weight and not {other} in the same "
                            "way, and the copy has the weight once; adapt both ends, or untie the base first"
                        )
                p = self.model.get_parameter(change.name)
                if (id(p), change.index) not in seen:  # two ends of one weight: one patch
                    seen.add((id(p), change.index))
                    out.append(self._patch(change, change.pick(p.detach())))
        return out

    def _patch(self, change: Change, own: Tensor) -> Patch:
        path, _, word = change.name.rpartition(".")
        owner = self.model.get_submodule(path)
        found = sparse(change, own)
        if found is not None:
            where, new = found
            return Patch(owner, word, change.index, new, own.view(-1)[where], where)
        new = torch.empty_like(own)
        change.fill(new, None)
        key = (id(owner._parameters[word]), change.index)
        if key not in self._kept:
            self._kept[key] = own.clone()
        return Patch(owner, word, change.index, new, self._kept[key])

    def __repr__(self) -> str:
        return f"Fused({type(self.model).__name__}, active: {self.active}, ready: {', '.join(self.ready) or 'none'})"


def sparse(change: Change, own: Tensor) -> tuple[Tensor, Tensor] | None:
    """(where, new): sorted flat positions in the stored parameter and its new values there; None for a dense change."""
    if change.op is None or change.W is None or not own.is_contiguous():
        return None
    found = entries(delta(change.op, change.W))
    matrix = change.matrix()
    if found is None or matrix is None:
        return None
    n = change.op.shape[1]
    where = found[0] // n * matrix.stride(0) + found[0] % n * matrix.stride(1)
    where, order = where.to(own.device).sort()
    if bool((where[1:] == where[:-1]).any()):
        return None  # the same position twice: what counts is for the operator to say
    values = found[1].detach().to(own.device)[order]
    exact = high(own.dtype)
    return where, (own.view(-1)[where].to(exact) + values.to(exact)).to(own.dtype)


def bare(model: nn.Module) -> nn.Module:
    """A copy with weights of its own, frozen, and nothing attached."""
    ours = [t for n, t in (*model.named_parameters(), *model.named_buffers()) if is_ours(n)]
    new = copy.deepcopy(model, {id(t): t for t in ours})  # what is dropped at once is not copied
    if ATTRIBUTE in new.__dict__:
        session(new).rows = None
        for name in list(session(new).adapters):
            session(new).adapters[name].detach()
    return new.requires_grad_(False)
