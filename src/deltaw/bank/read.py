"""From an adapter directory to factors without attaching anything: where a file holds B and A as they are, they are
copied from the memory-mapped file into the slots.

What a configuration means (which sites, which ranks, which scale) is worked out once and kept by the bytes of the
file's header: adapters of one configuration differ in their numbers only. Whatever is unusual here is left to
`deltaw.load`, which reads every form there is and has the error messages.
"""

from __future__ import annotations

import json
import mmap
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DeltawError
from ..files.disk import file_hash, read_json
from ..files.fingerprint import check
from ..files.foreign import formats
from ..files.load import Saved, _compare_sites
from ..files.save import CARD, FIELDS, SCHEMA, TENSORS
from ..ops import Affine, Op, delta, factors
from ..plan import Assignment, Plan
from ..spec import Method, Param, Tensors
from .slots import Factors

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
KINDS = ("linear", "conv1d_hf", "opaque", "embedding")  # where a bank can act


@dataclass(frozen=True)
class Layout:
    """What all files with this header have in common. sizes: numbers of each tensor, in the order of the file; B and A:
    which of them belong to each site."""

    names: list[str]
    sizes: list[int]
    dtype: torch.dtype
    sites: tuple[str, ...]
    ranks: tuple[int, ...]
    scales: tuple[float, ...]
    B: list[int]
    A: list[int]


class Reader:
    def __init__(self, model: nn.Module, base: dict[str, Any]):
        self.model, self.base = model, base
        self.known: dict[bytes, list[tuple[dict[str, Any], Layout]]] = {}
        self.probed: dict[Any, tuple[str, str, float, int] | None] = {}

    def read(self, path: Path, any_base: bool, verify: bool) -> Factors | None:
        """The factors of a directory, as views of the mapped file; None if this is no such directory."""
        card = read_json(path / CARD) if (path / CARD).is_file() else None
        config = None
        if card is None:
            foreign = next((f for f in formats().values() if (path / f.config_name).is_file()), None)
            if foreign is None:
                return None
            config = read_json(path / foreign.config_name)
        elif not self._ours(path, card, any_base, verify):
            return None
        opened = _open(path / TENSORS)
        if opened is None:
            return None
        header, start, mapped = opened
        facts = config if card is None else {k: v for k, v in card.items() if k not in ("files", "base", "versions")}
        assert facts is not None
        layout = next((found for seen, found in self.known.get(header, ()) if seen == facts), None)
        if layout is None:
            layout = self._layout(path, card, config, header)
            if layout is None:
                return None
            self.known.setdefault(header, []).append((facts, layout))
        total = sum(layout.sizes)
        if len(mapped) != start + total * layout.dtype.itemsize or start % layout.dtype.itemsize:
            return None
        flat = torch.frombuffer(mapped, dtype=layout.dtype, count=total, offset=start)
        parts = torch.split(flat, layout.sizes)
        return Factors(
            layout.sites, layout.ranks, [parts[k] for k in layout.B], [parts[k] for k in layout.A], layout.scales,
            lambda k: f"{path / TENSORS}: {layout.sites[k]}",
        )  # fmt: skip

    def _ours(self, path: Path, card: dict[str, Any], any_base: bool, verify: bool) -> bool:
        """Nothing in deltaw.json that the short way does not understand, and this base."""
        files = card.get("files")
        if (card.get("format"), card.get("schema")) != ("deltaw", SCHEMA) or set(card) - FIELDS or card.get("seeded") != {}:
            return False
        if not isinstance(files, dict) or set(files) != {TENSORS} or not isinstance(card.get("base"), dict):
            return False
        if not any_base and check(card["base"], self.base) is not None:
            return False
        return not verify or ((path / TENSORS).is_file() and file_hash(path / TENSORS) == files[TENSORS])

    # ---- once for every configuration

    def _layout(self, path: Path, card: dict[str, Any] | None, config: Any, header: bytes) -> Layout | None:
        found = _entries(header)
        if found is None:
            return None
        names, shapes, dtype = found
        try:
            blank = {k: torch.zeros((), dtype=dtype).expand(s) for k, s in shapes.items()}
            saved = Saved(path, card, config, blank)
            if card is None:
                plan: Plan = formats()["peft"].plan(saved, self.model)[0]
            else:
                plan = Plan.from_dict(card["plan"])
            assignments = plan.resolve(self.model)
            if card is not None:
                _compare_sites(saved, SimpleNamespace(plan=plan, assignments=assignments))  # type: ignore[arg-type]
        except (DeltawError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError):
            return None  # said in full by the long way
        native = card is not None and card.get("layout") == "native"
        if plan.init is not None and plan.init.shifts and not native:
            return None  # the constant of the start is among the ranks, or to be computed
        number, layout = {k: i for i, k in enumerate(names)}, Layout(names, [], dtype, (), (), (), [], [])
        sites, ranks, scales = [], [], []
        for a in assignments:
            keys = {t: f"{a.site.name}.{t}" for t in ("A", "B")} if native else formats()["peft"].keys(a)
            probe = self._probe(a)
            if keys is None or probe is None or (native and a.shares is not None) or a.site.kind not in KINDS:
                return None
            b, c = keys.get(probe[0]), keys.get(probe[1])
            (m, n), r = a.site.shape, shapes.get(c or "", (0,))[0]
            if b is None or c is None or shapes.get(b) != (m, r) or shapes.get(c) != (r, n) or r != probe[3]:
                return None
            layout.B.append(number[b])
            layout.A.append(number[c])
            sites.append(a.site.name)
            ranks.append(r)
            scales.append(probe[2])
        if len(set(layout.B + layout.A)) != len(names):
            return None
        sizes = [torch.Size(shapes[k]).numel() for k in names]
        return Layout(names, sizes, dtype, tuple(sites), tuple(ranks), tuple(scales), layout.B, layout.A)

    def _probe(self, a: Assignment) -> tuple[str, str, float, int] | None:
        try:
            declared = a.method.declare(a.site)
        except DeltawError:
            return None
        key = (repr(a.method), *((k, p.shape if isinstance(p, Param) else None) for k, p in declared.items()))
        if key not in self.probed:
            self.probed[key] = _pattern(a.method, declared, a.site.shape)
        return self.probed[key]


class Unseen(Op):
    """A base that nothing may look at."""

    def __init__(self, m: int, n: int):
        self.shape, self.zero = (m, n), torch.zeros((), dtype=torch.float64)

    @property
    def like(self) -> Tensor:
        return self.zero


def _pattern(method: Method, declared: dict[str, Any], shape: tuple[int, int]) -> tuple[str, str, float, int] | None:
    """(name of B, name of A, s, r) if the delta is s B A of two tensors of the site, found by trying: no method is asked
    for by name."""
    if len(declared) != 2 or not all(isinstance(p, Param) and p.scope == "site" and p.seed is None for p in declared.values()):
        return None
    generator = torch.Generator().manual_seed(0)
    some = {k: torch.randn(p.shape, dtype=torch.float64, generator=generator) for k, p in declared.items()}
    ones, other = (_factors(method, shape, t) for t in ({k: torch.ones_like(t) for k, t in some.items()}, some))
    if ones is None or other is None:
        return None
    numbers = [float(t.flatten()[0]) if t.numel() else 1.0 for t in ones]  # the scale, wherever it has been folded in
    if not all(torch.equal(t, torch.full_like(t, c)) for t, c in zip(ones, numbers)):
        return None
    for names in (tuple(declared), tuple(declared)[::-1]):
        if all(
            t.shape == some[k].shape and torch.allclose(t, c * some[k], rtol=1e-14, atol=0)
            for t, c, k in zip(other, numbers, names)
        ):
            return names[0], names[1], numbers[0] * numbers[1], other[1].shape[0]
    return None


def _factors(method: Method, shape: tuple[int, int], tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor] | None:
    W = Unseen(*shape)
    try:
        L = method.layer(Affine(W), Tensors(False, **tensors))
        return factors(delta(L.op, W)) if isinstance(L, Affine) and L.bias is None else None
    except (NotImplementedError, DeltawError):
        return None  # it looks at the base


# ---- safetensors, without a copy


def _open(path: Path) -> tuple[bytes, int, mmap.mmap] | None:
    """(header, where the numbers start, the whole file)."""
    try:
        with open(path, "rb") as handle:
            mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError):
        return None
    start = 8 + int.from_bytes(mapped[:8], "little")
    return None if start > len(mapped) else (mapped[8:start], start, mapped)


def _entries(header: bytes) -> tuple[list[str], dict[str, tuple[int, ...]], torch.dtype] | None:
    """(names in the order of the file, shapes, the one dtype); None for mixed dtypes, holes, or no header."""
    try:
        entries = {k: v for k, v in json.loads(header).items() if k != "__metadata__"}
        names = sorted(entries, key=lambda k: entries[k]["data_offsets"][0])
        shapes = {k: tuple(int(s) for s in entries[k]["shape"]) for k in names}
        kinds, at = {entries[k]["dtype"] for k in names}, 0
        if len(kinds) != 1 or not kinds <= set(DTYPES):
            return None
        dtype = DTYPES[kinds.pop()]
        for k in names:
            begin, end = entries[k]["data_offsets"]
            if begin != at or end - begin != torch.Size(shapes[k]).numel() * dtype.itemsize:
                return None
            at = end
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return names, shapes, dtype
