"""Bank: thousands of adapters on one model, as data."""

from __future__ import annotations

import contextlib
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..attach import Adapted, _nothing
from ..convert import Converted, to_lora
from ..errors import NotLinear, NotMergeable, SpecError, StateMismatch, TargetError, nearest
from ..files import load
from ..files.fingerprint import card, check
from ..session import ATTRIBUTE, Place
from ..sites.find import Candidates
from .arena import Arena
from .mixture import Mixture, Work
from .read import KINDS, Reader
from .slots import Factors, Slots, store
from .spot import Spot, State

OWN = "_deltaw_bank"  # on the root module
WIDTHS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Bank:
    """Many adapters on one model, each the exact low-rank factors (B, A) of a delta, scale folded in, stored in pages of
    an arena per shape of site: no modules, no parameters, nothing trained.

        bank = Bank(model)
        bank.add("math", "adapters/math")             # ours or PEFT's directory, an Adapted, or what to_lora() returned
        bank.activate("math")                         # the whole batch; None is the base
        with bank.rows(["math", None, "law"]):        # row i of the batch under adapter names[i], also in generate
            model(...)
        bank.close()                                  # the model as it was

    dtype: of the factors, by default the one most of the model's numbers have. page: ranks per page. mixtures: how many
    mixtures keep their factors side by side (a copy of those in use). Inference only: gradients reach the inputs, never
    the bank. One thread at a time. Methods without exact low-rank factors are refused. Errors: SpecError for a model that
    already carries adapters or a bank.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None, page: int = 8, mixtures: int = 2):
        if page < 1 or mixtures < 1:
            raise SpecError(f"page and mixtures are at least 1; found page={page}, mixtures={mixtures}")
        for path, module in model.named_modules():
            found = module.__dict__.get("forward")
            if isinstance(found, (Place, Spot)) or OWN in module.__dict__ or ATTRIBUTE in module.__dict__:
                raise SpecError(
                    f"{path or 'the model'} already carries adapters or a bank: detach them, or close it, and give the "
                    "adapters to one bank"
                )
        self.model, self.page, self.mixtures = model, page, mixtures
        self.dtype = _compute_dtype(model) if dtype is None else dtype
        if self.dtype not in WIDTHS:
            raise SpecError(f"a bank computes in float64, float32, float16 or bfloat16; found dtype={dtype}")
        self._base = card(model)
        self._where, self._reader, self._state = Candidates(model, "weight"), Reader(model, self._base), State()
        self._slots: dict[str, Slots] = {}
        self._spots: dict[str, Spot] = {}
        self._arenas: dict[str, Arena] = {}  # by site; sites of one shape on one device have the same one
        self._by_shape: dict[tuple[int, int, torch.device], Arena] = {}
        self._works: OrderedDict[tuple[int, ...], Work] = OrderedDict()
        self._mixed: OrderedDict[tuple[str | None, ...], Mixture] = OrderedDict()
        self._serial, self._inside = 0, 0
        model.__dict__[OWN] = self

    # ---- adapters in and out

    def add(self, name: str, source: Any, *, any_base: bool = False, verify: bool = False) -> None:
        """Take an adapter in under a name: a directory (ours or PEFT's), an Adapted of a copy of this base, or a Converted.

        A plain pair of factors is copied from the memory-mapped file; anything else is attached for the moment of reading
        it. Strict as `deltaw.load`: missing or extra tensors, wrong shapes, values that are not finite, another base
        (unless any_base): StateMismatch; names that are not in the model: TargetError; no exact low-rank factors:
        NotMergeable or NotLinear. verify: compare the sha256 of deltaw.json too, which takes longer than the copy. On any
        error the bank is as it was.
        """
        self._open()
        if not isinstance(name, str) or not name:
            raise SpecError(f"an adapter's name is a string that is not empty; found {name!r}")
        if name in self._slots:
            raise SpecError(f"the bank already has an adapter '{name}': remove it, or choose another name")
        short = None
        if isinstance(source, (Adapted, Converted)):
            found = self._taken(name, source, any_base)
        else:
            short = self._reader.read(Path(source), any_base, verify)
            found = self._attached(name, Path(source), any_base) if short is None else short
        new = {site: self._spot(site) for site in found.sites if site not in self._spots}
        arenas = self._arenas | {site: spot.arena for site, spot in new.items()} if new else self._arenas
        if short is None:
            _fits(name, found, arenas)
        slots = store(name, self._serial, found, arenas)
        self._serial += 1
        self._slots[name] = slots
        for site, spot in new.items():
            self._arenas[site], self._spots[site] = spot.arena, spot
            self._patch(spot)

    def remove(self, name: str) -> None:
        """Free an adapter's pages; if it was active, the base is."""
        slots = self._known(name)
        if isinstance(self._state.mode, Mixture) and slots in self._state.mode.work.order:
            raise SpecError(f"'{name}' serves rows of the batch: leave the `with bank.rows(...)` block before removing it")
        for key in [k for k, w in self._works.items() if slots in w.order]:
            del self._works[key]
        for names in [k for k in self._mixed if name in k]:
            del self._mixed[names]
        if self._state.active is slots:
            self.activate(None)
        slots.release(self._arenas)
        del self._slots[name]

    @property
    def names(self) -> list[str]:
        """The adapters, in the order they were added."""
        return list(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, name: object) -> bool:
        return name in self._slots

    # ---- which are used

    def activate(self, name: str | None) -> None:
        """The whole batch under one adapter from now on, or under the base. Inside `rows` it takes effect on leaving."""
        self._open()
        self._state.active = None if name is None else self._known(name)
        if not self._inside:
            self._state.mode = self._state.active

    @contextlib.contextmanager
    def rows(self, names: Sequence[str | None]) -> Iterator[None]:
        """Row i of the batch under adapter names[i], or under the base. Rows are told apart by the first axis of what a
        layer sees, tokens flattened row by row and copies side by side (beams) included; ShapeError where they cannot be."""
        self._open()
        mixture, before = self._mixture(tuple(names)), self._state.mode
        hook = self.model.register_forward_pre_hook(mixture.look, with_kwargs=True) if mixture is not None else None
        self._state.mode = mixture
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            self._state.mode = before if self._inside else self._state.active
            if hook is not None:
                hook.remove()

    def _mixture(self, names: tuple[str | None, ...]) -> Mixture | None:
        if not names:
            raise SpecError("bank.rows needs one adapter name (or None) for every row of the batch; the list is empty")
        counts = Counter(n for n in names if n is not None)
        for n in counts:
            self._known(n)
        if not counts:
            return None
        if names not in self._mixed:
            order = sorted((self._slots[n] for n in counts), key=lambda a: (-counts[a.name], a.serial))
            key = tuple(a.serial for a in order)
            work = self._works.setdefault(key, Work(order))
            self._mixed[names] = Mixture(names, work)
        mixture = self._mixed[names]
        self._mixed.move_to_end(names)
        self._works.move_to_end(tuple(a.serial for a in mixture.work.order))
        while len(self._works) > self.mixtures:
            _, old = self._works.popitem(last=False)
            for k in [k for k, m in self._mixed.items() if m.work is old]:
                del self._mixed[k]
        while len(self._mixed) > 8 * self.mixtures:
            self._mixed.popitem(last=False)
        return mixture

    # ---- what it holds

    def report(self) -> dict[str, Any]:
        """Counts and bytes, as plain data. bytes: reserved by the arenas; used: of pages handed out; mixtures: of the copies
        side by side."""
        arenas = list(self._by_shape.values())
        pages, free = sum(a.pages for a in arenas), sum(a.left for a in arenas)
        return {
            "adapters": len(self._slots),
            "sites": len(self._spots),
            "dtype": str(self.dtype).removeprefix("torch."),
            "page": self.page,
            "pages_used": pages - free,
            "pages_free": free,
            "bytes": sum(a.pages * a.page_bytes for a in arenas),
            "bytes_used": sum((a.pages - a.left) * a.page_bytes for a in arenas),
            "bytes_mixtures": sum(w.bytes() for w in self._works.values()),
            "ranks": max((r for s in self._slots.values() for r in s.ranks.values()), default=0),
            "active": self._state.active.name if self._state.active is not None else None,
        }

    def close(self) -> None:
        """Give the model its own forwards back and drop everything. A closed bank cannot be used again."""
        if self.model.__dict__.get(OWN) is not self:
            return
        for spot in self._spots.values():
            if spot.hook is not None:
                spot.hook.remove()
            _unpatch(spot)
        self._state.mode = self._state.active = None
        for held in (self._slots, self._spots, self._arenas, self._by_shape, self._works, self._mixed):
            held.clear()
        del self.model.__dict__[OWN]

    def __repr__(self) -> str:
        return f"Bank({len(self._slots)} adapters on {len(self._spots)} sites of {type(self.model).__name__}, {self.dtype})"

    # ---- inside

    def _open(self) -> None:
        if self.model.__dict__.get(OWN) is not self:
            raise SpecError("this bank has been closed: make a new one with deltaw.Bank(model)")
        if ATTRIBUTE in self.model.__dict__:
            raise SpecError("adapters were attached to this model beside its bank: detach them and add them to the bank")

    def _known(self, name: str) -> Slots:
        if name not in self._slots:
            some = ", ".join(list(self._slots)[:8]) or "none"
            raise TargetError(f"the bank has no adapter '{name}'{nearest(name, self._slots)}; it has {len(self)}: {some}")
        return self._slots[name]

    def _taken(self, name: str, source: Adapted | Converted, any_base: bool) -> Factors:
        """From an adapter that is attached to a copy of this base, or its exact or cut conversion."""
        adapted: Any = source if isinstance(source, Adapted) else source.adapted
        if not any_base and (why := check(card(adapted.model, adapted.plan.train_modules), self._base_without(adapted))):
            raise StateMismatch(
                f"adapter '{name}' was made on another base than this {type(self.model).__name__}: {why}. Load that base, or "
                "pass any_base=True if you mean it"
            )
        return _converted(name, source)

    def _base_without(self, adapted: Any) -> dict[str, Any]:
        left_out = adapted.plan.train_modules
        return card(self.model, left_out) if left_out else self._base

    def _attached(self, name: str, path: Path, any_base: bool) -> Factors:
        """The long way: attach it for a moment and ask the algebra."""
        ours = [spot for spot in self._spots.values() if spot.module.__dict__.get("forward") is spot]
        if len(ours) < len(self._spots):
            raise SpecError("another library has wrapped forwards of this model since: add such adapters before that")
        for spot in ours:
            _unpatch(spot)
        try:
            adapted = load(self.model, path, any_base=any_base)
            try:
                return _converted(name, adapted)
            finally:
                adapted.detach()
        finally:
            for spot in ours:
                spot.module.__dict__["forward"] = spot

    def _spot(self, site: str) -> Spot:
        stacked = site.rpartition(".")[0] in self._where.stacks
        if site not in self._where.modules and not stacked:
            raise TargetError(f"site '{site}' of the adapter is not in this model{nearest(site, self._where.usable())}")
        found = self._where.sites(site.rpartition(".")[0] if stacked else site)[0]
        if found.kind not in KINDS:
            raise NotMergeable(
                f"{site}: a bank acts on linear layers and embeddings; this is a {found.kind}. Leave it out of the adapter, or "
                "attach the adapter with deltaw.load"
            )
        m, n = found.shape
        key = (m, n, found.leaf().op.like.device)
        if key not in self._by_shape:
            self._by_shape[key] = Arena(m, n, self.page, self.dtype, key[2])
        return Spot(found, self._by_shape[key], self._state)

    def _patch(self, spot: Spot) -> None:
        above = [self.model.get_submodule(".".join(spot.name.split(".")[:k])) for k in range(spot.name.count(".") + 1)]
        if any(isinstance(m, nn.TransformerEncoderLayer) for m in above):
            spot.hook = spot.module.register_forward_pre_hook(_nothing)  # its fused kernel would call no submodule
        spot.module.__dict__["forward"] = spot


def _unpatch(spot: Spot) -> None:
    if spot.module.__dict__.get("forward") is not spot:
        return  # another library has wrapped it meanwhile; the spot it holds does nothing once the bank is closed
    if spot.set_forward is None:
        del spot.module.__dict__["forward"]
    else:
        spot.module.__dict__["forward"] = spot.set_forward


def _fits(name: str, found: Factors, arenas: dict[str, Arena]) -> None:
    for site, B, A, r in zip(found.sites, found.B, found.A, found.ranks):
        m, n = arenas[site].m, arenas[site].n
        if (B.numel(), A.numel()) != (m * r, r * n):
            raise StateMismatch(
                f"adapter '{name}': {site} is {m} x {n} here; found factors of rank {r} with {B.numel()} and {A.numel()} "
                "numbers, which belong to another base"
            )


def _converted(name: str, source: Adapted | Converted) -> Factors:
    adapted = source if isinstance(source, Adapted) else source.adapted
    whole = [a.site.name for a in adapted.assignments if a.site.kind == "module"]
    if whole:
        raise NotMergeable(
            f"adapter '{name}' trains whole modules ({whole[0]}), which no low-rank change equals: train it without "
            "train_modules, or serve it alone with deltaw.load"
        )
    try:
        pairs = (to_lora(source) if isinstance(source, Adapted) else source).factors
    except NotLinear as error:
        raise type(error)(
            f"adapter '{name}' cannot be in a bank, which holds exact low-rank factors: {error}. Otherwise merge it, or "
            "attach it and use deltaw.activate and deltaw.rows"
        ) from error
    flat = [(B.detach().contiguous().view(-1), A.detach().contiguous().view(-1), B.shape[1]) for B, A in pairs.values()]
    sites, ranks = list(pairs), [r for _, _, r in flat]
    return Factors(
        sites, ranks, [B for B, _, _ in flat], [A for _, A, _ in flat], [1.0] * len(flat), lambda k: f"{name}: {sites[k]}"
    )


def _compute_dtype(model: nn.Module) -> torch.dtype:
    count: Counter[torch.dtype] = Counter()
    for p in model.parameters():
        if p.dtype in WIDTHS:
            count[p.dtype] += p.numel()
    if not count:
        raise SpecError(f"{type(model).__name__} has no floating-point parameters to take a dtype from: give dtype=...")
    return count.most_common(1)[0][0]
