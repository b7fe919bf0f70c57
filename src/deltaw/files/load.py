"""Reading an adapter, ours or PEFT's: strict, and the model is left as it was on any error."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..entry import width_of
from ..errors import DeltawError, StateMismatch, TargetError, nearest
from ..ops import random as rng
from ..plan import Plan
from ..session import ATTRIBUTE
from .disk import file_hash, read_json, read_tensors, tensor_hash
from .fingerprint import card as base_card
from .fingerprint import check
from .foreign import formats
from .save import CARD, EXACT, FIELDS, SCHEMA, TENSORS, regenerate, rows

if TYPE_CHECKING:
    from ..attach import Adapted


@dataclass
class Saved:
    """An adapter directory, read and checked as far as that goes without a model."""

    path: Path
    card: dict[str, Any] | None  # deltaw.json
    config: dict[str, Any] | None  # the foreign configuration
    tensors: dict[str, Tensor]
    exact: dict[str, Tensor] = field(default_factory=dict)

    @property
    def format(self) -> str:
        return "deltaw" if self.card is not None else "peft"

    @property
    def plan(self) -> Plan | None:
        """The plan, where deltaw wrote the directory (a PEFT configuration needs the model to become one)."""
        return None if self.card is None else _plan(self.path, self.card)

    @property
    def unknown(self) -> list[str]:
        return sorted(set(self.card or {}) - FIELDS)


def read(directory: Any) -> Saved:
    """Read an adapter directory. Raises StateMismatch for anything damaged, foreign or changed since it was written."""
    path = Path(directory)
    if not path.is_dir():
        raise StateMismatch(f"{path} is no directory; an adapter is a directory with {TENSORS} and a JSON file")
    foreign = next((f for f in formats().values() if (path / f.config_name).is_file()), None)
    if (path / CARD).is_file():
        card = read_json(path / CARD)
        if card.get("format") != "deltaw":
            raise StateMismatch(f"{path / CARD}: format 'deltaw' was expected; found {card.get('format')!r}")
        if card.get("schema") != SCHEMA:
            raise StateMismatch(
                f"{path / CARD}: schema {SCHEMA} is what this version of deltaw reads; found {card.get('schema')!r}. "
                "Read it with the version that wrote it (field 'versions'), or update deltaw"
            )
        _intact(path, card)
        exact = read_tensors(path / EXACT) if EXACT in card["files"] else {}
        config = read_json(path / foreign.config_name) if foreign and card.get("layout") == "peft" else None
        return Saved(path, card, config, read_tensors(path / TENSORS), exact)
    if foreign is not None:
        if not (path / TENSORS).is_file() and (old := [f.name for f in path.glob("*.bin")]):
            raise StateMismatch(
                f"{path} holds its tensors in {old[0]}, a pickle, which may run code when read and is refused. Convert it "
                "where you trust it: torch.load(..., weights_only=True), then safetensors.torch.save_file to "
                f"{TENSORS}"
            )
        return Saved(path, None, read_json(path / foreign.config_name), read_tensors(path / TENSORS))
    raise StateMismatch(
        f"{path} has neither {CARD} nor a PEFT adapter_config.json; found {sorted(p.name for p in path.iterdir())[:8]}"
        + (f". The adapter of this run is in {path / 'adapter'}" if (path / "adapter" / CARD).is_file() else "")
    )


def _intact(path: Path, card: dict[str, Any]) -> None:
    files = card.get("files")
    if not isinstance(files, dict) or TENSORS not in files or not set(files) <= {TENSORS, EXACT}:
        raise StateMismatch(f"{path / CARD}: 'files' must list {TENSORS} with its sha256; found {files!r}")
    for name, wanted in files.items():
        if not (path / name).is_file():
            raise StateMismatch(f"{path / name} is missing; {CARD} lists it. Copy the whole directory again")
        if file_hash(path / name) != wanted:
            raise StateMismatch(
                f"{path / name} is not the file that {CARD} describes: truncated, damaged, or written since by another "
                f"program. Copy it again; or, if another program saved a PEFT adapter here on purpose, delete {CARD}"
            )


def _plan(path: Path, card: dict[str, Any]) -> Plan:
    try:
        return Plan.from_dict(card["plan"])
    except (DeltawError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise StateMismatch(f"{path / CARD}: the plan cannot be read: {error}") from error


def load(model: nn.Module, directory: Any, name: str = "default", any_base: bool = False) -> Adapted:
    """Attach the adapter of a directory (ours or PEFT's) under a name and make it live.

    Strict: missing or extra tensors, wrong shapes or kinds of sites, values that are not finite, another base (unless
    any_base), unknown versions: StateMismatch; names that are not in the model: TargetError. On any error the model is
    left as it was. Seeded tensors are drawn again and checked against their checksum.
    """
    saved = read(directory)
    kept: dict[str, Any] = {}
    if saved.card is not None:
        plan = saved.plan
        assert plan is not None
        kept["card"] = {k: saved.card[k] for k in saved.unknown}
        for word in ("base", "seeded"):
            if not isinstance(saved.card.get(word), dict):
                raise StateMismatch(f"{saved.path / CARD}: '{word}' must be an object; found {saved.card.get(word)!r}")
        if saved.unknown:
            warnings.warn(
                f"{saved.path / CARD} has fields unknown to this version, kept: {', '.join(saved.unknown)}",
                stacklevel=2,
            )
        if not any_base and (why := check(saved.card.get("base") or {}, base_card(model, plan.train_modules))):
            raise StateMismatch(
                f"{saved.path}: this adapter was trained on another base than this {type(model).__name__}: {why}. Load that "
                "base, or pass any_base=True if you mean it"
            )
    else:
        plan, kept["peft"] = _typed(saved, formats()["peft"].plan, saved, model)
    from ..attach import attach

    session = model.__dict__.get(ATTRIBUTE)
    live = session.live if session is not None else ()
    adapted: Adapted = _typed(saved, attach, model, plan, name, empty=True)
    try:
        if saved.card is not None:
            _compare_sites(saved, adapted)
            _constants(saved, adapted)
        _fill(saved, adapted)
    except BaseException:
        adapted.detach()
        if session is not None:
            session.live = live
        raise
    adapted.__dict__["kept"] = kept
    return adapted


def _typed(saved: Saved, call: Any, *args: Any, **kw: Any) -> Any:
    """call(...), where a value in a file may be of any type and size: what that leads to is an error of the file."""
    try:
        return call(*args, **kw)
    except DeltawError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError, re.error) as error:
        raise StateMismatch(f"{saved.path}: the plan in this directory cannot be followed here: {error!r}") from error


def _compare_sites(saved: Saved, adapted: Adapted) -> None:
    assert saved.card is not None
    where, listed = saved.path / CARD, saved.card.get("sites")
    if not isinstance(listed, list) or not all(isinstance(r, dict) and isinstance(r.get("name"), str) for r in listed):
        raise StateMismatch(f"{where}: 'sites' must be a list of objects with a name each")
    here = {r["name"]: r for r in rows(adapted, constants=False)}
    there = {r["name"]: r for r in listed}
    for name in there:
        if name not in here:
            raise TargetError(f"{where}: site '{name}' is not in this model{nearest(name, here)}")
    for name, row in here.items():
        if name not in there:
            raise StateMismatch(f"{where}: the plan reaches '{name}' in this model, but the file has nothing for it")
        for word in ("kind", "shape", "method", "shares", "flip"):
            if word == "kind" and {row.get(word), there[name].get(word)} <= {"linear", "opaque"}:
                continue  # the same layer, quantised
            if row.get(word) != there[name].get(word):
                raise StateMismatch(
                    f"{where}: {name}: {word} {there[name].get(word)} was saved; this model has {row.get(word)}"
                )


def _constants(saved: Saved, adapted: Adapted) -> None:
    """Rules may have moved more into a site's constant than it started with: room for what the file has."""
    assert saved.card is not None
    entries, sizes = adapted.entries(), {r["name"]: r.get("offset") for r in saved.card["sites"]}
    for a in adapted.assignments:
        rank = sizes[a.site.name] if a.shares is None else None
        if rank is None:
            continue
        m, n = a.site.shape
        if not isinstance(rank, int) or isinstance(rank, bool) or not 0 < rank <= m + n:
            raise StateMismatch(
                f"{saved.path / CARD}: {a.site.name}: a constant of a {m} x {n} weight has a rank; found {rank!r}"
            )
        like, dtype = a.site.leaf().op.like, width_of(a.site.leaf().op)
        entries[a.site.name].constant(
            *(torch.empty(s, dtype=dtype, device=like.device) for s in ((m, rank), (rank, n)))
        )


@torch.no_grad()
def _fill(saved: Saved, adapted: Adapted) -> None:
    """Copy the file's tensors into the empty ones of the adapter; every name and shape must fit."""
    wanted = adapted.state()
    if saved.card is None or saved.card.get("layout") == "peft":
        found = formats()["peft"].native(adapted, saved.tensors) | saved.exact
    else:
        found = dict(saved.tensors)
    if saved.card is not None and saved.card.get("seeded"):
        found |= _seeded(saved, adapted)
    if lost := sorted(set(wanted) - set(found)):
        raise StateMismatch(
            f"{saved.path}: {len(lost)} of {len(wanted)} tensors are missing, first '{lost[0]}'; expected shape "
            f"{tuple(wanted[lost[0]].shape)}. The file is incomplete, or belongs to another plan"
        )
    if extra := sorted(set(found) - set(wanted)):
        raise StateMismatch(
            f"{saved.path}: {len(extra)} tensors belong to nothing in this adapter, first '{extra[0]}'"
            f"{nearest(extra[0], wanted)}. The file belongs to another plan or model"
        )
    for site, entry in adapted.entries().items():
        for name, axis in entry.free.items():
            target, tensor = entry.get(name), found[f"{site}.{name}"]
            if tensor.dim() == target.dim() and all(
                a == b for d, (a, b) in enumerate(zip(tensor.shape, target.shape)) if d != axis
            ):
                target.data = target.new_empty(tensor.shape)
    for name, tensor in found.items():
        target = wanted[name]
        if tensor.shape != target.shape:
            raise StateMismatch(
                f"{saved.path}: '{name}': expected shape {tuple(target.shape)}, found {tuple(tensor.shape)}; "
                "the file belongs to another rank or base"
            )
        if tensor.is_floating_point() != target.is_floating_point():
            raise StateMismatch(f"{saved.path}: '{name}': expected {target.dtype}, found {tensor.dtype}")
    for name, tensor in found.items():
        if wanted[name].device.type != "meta":
            wanted[name].copy_(tensor)


def _seeded(saved: Saved, adapted: Adapted) -> dict[str, Tensor]:
    assert saved.card is not None
    if saved.card.get("generator") != rng.VERSION:
        raise StateMismatch(
            f"{saved.path / CARD}: random numbers of generator version {saved.card.get('generator')!r} are needed; this "
            f"is version {rng.VERSION}"
        )
    fresh, out = regenerate(adapted), {}
    for name, facts in saved.card["seeded"].items():
        if name not in fresh:
            raise StateMismatch(
                f"{saved.path / CARD}: seeded tensor '{name}' is none of this adapter{nearest(name, fresh)}"
            )
        known = facts.get("sha256") if isinstance(facts, dict) else None
        if fresh[name].device.type != "meta" and tensor_hash(fresh[name]) != known:
            raise StateMismatch(
                f"{saved.path / CARD}: '{name}' drawn again from its seed has another checksum than when it was saved. "
                "Save it with seeds=False where it was made, so that the tensor itself is in the file"
            )
        out[name] = fresh[name]
    return out
