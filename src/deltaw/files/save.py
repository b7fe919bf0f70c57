"""Writing an adapter: tensors in safetensors, everything else in deltaw.json."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import torch
from torch import Tensor

from ..entry import make
from ..ops import random as rng
from ..spec import Param, Start, to_config
from .disk import Writer, commit, file_hash, json_writer, tensor_hash, tensors_writer
from .fingerprint import card as base_card
from .foreign import Inexpressible, formats

if TYPE_CHECKING:
    from ..attach import Adapted

SCHEMA = 1
TENSORS, CARD, EXACT = "adapter_model.safetensors", "deltaw.json", "deltaw.safetensors"
FIELDS = {"format", "schema", "plan", "sites", "layout", "files", "seeded", "generator", "base", "versions", "peft"}


def save_adapter(adapted: Adapted, directory: Any, peft: bool = True, seeds: bool = True) -> Path:
    """Write an adapter: adapter_model.safetensors, deltaw.json and, where PEFT has the method, adapter_config.json.

    With a PEFT configuration the tensors have PEFT's names and the directory is a valid PEFT adapter; what PEFT's form
    cannot hold to the last bit (the constant of a shifted start) is kept exactly in deltaw.safetensors besides.
    Otherwise the names are "SITE.TENSOR" and deltaw.json says why PEFT cannot read it. Frozen tensors drawn from a seed
    are stored as a checksum (seeds=False stores them). Atomic; saving twice gives the same bytes.
    """
    state = {k: v.detach() for k, v in adapted.state().items()}
    kept: dict[str, Any] = adapted.__dict__.get("kept", {})
    config, packed, exact, reason = None, state, dict[str, Tensor](), "not asked for"
    also: dict[str, Writer] = {}
    if peft:
        try:
            config, packed, also = formats()["peft"].write(adapted, state, Path(directory))
            back = formats()["peft"].native(adapted, packed)
            exact = {k: v for k, v in state.items() if k not in back or not same(back[k], v)}
        except Inexpressible as error:
            reason = str(error)
    seeded: dict[str, Any] = {}
    if config is None and seeds:
        for name, fresh in regenerate(adapted).items():
            if same(fresh, state[name]):
                seeded[name] = {"sha256": tensor_hash(fresh)}
        packed = {k: v for k, v in state.items() if k not in seeded}
    files: dict[str, Writer] = {**also, TENSORS: tensors_writer(packed)}
    if exact:
        files[EXACT] = tensors_writer(exact)
    if config is not None:
        files[formats()["peft"].config_name] = json_writer(config)
    card = {
        **kept.get("card", {}),
        "format": "deltaw",
        "schema": SCHEMA,
        "plan": adapted.plan.to_dict(),
        "sites": rows(adapted),
        "layout": "native" if config is None else "peft",
        "peft": {"written": config is not None, **({"reason": reason} if config is None else {})},
        "seeded": seeded,
        "generator": rng.VERSION,
        "base": base_card(adapted.model, adapted.plan.train_modules),
        "versions": _versions(),
    }

    def write_card(path: Path) -> None:  # last, when the bytes of the others are known
        hashes = {name: file_hash(path.parent / name) for name in (TENSORS, EXACT) if name in files}
        json_writer({**card, "files": hashes})(path)

    stale = [EXACT, CARD, *(f.config_name for f in formats().values())]
    return commit(directory, {**files, CARD: write_card}, stale)


def same(a: Tensor, b: Tensor) -> bool:
    """Equal to the last bit."""
    return a.dtype == b.dtype and a.shape == b.shape and bool(torch.equal(a.to(b.device), b))


def _versions() -> dict[str, str]:
    from .. import __version__

    return {"deltaw": __version__, "torch": torch.__version__, "safetensors": safetensors.__version__}


def rows(adapted: Adapted, constants: bool = True) -> list[dict[str, Any]]:
    """The resolved sites; the method only where it is not the plan's; with `constants` the rank of one where there is one, which
    asks for the tensors, while the rest follows from the plan."""
    out, entries = [], adapted.entries() if constants else {}
    for a in adapted.assignments:
        row: dict[str, Any] = {"name": a.site.name, "kind": a.site.kind, "shape": list(a.site.shape)}
        if a.method != adapted.plan.method:
            row["method"] = to_config(a.method)
        if a.shares is not None:
            row |= {"shares": a.shares, "flip": a.flip}
        elif constants and (moved := entries[a.site.name].moved):
            row["offset"] = moved
        out.append(row)
    return out


def regenerate(adapted: Adapted) -> dict[str, Tensor]:
    """The frozen tensors that follow from a seed, drawn again."""
    out: dict[str, Tensor] = {}
    entries, pool = adapted.entries(), adapted.pool()
    for a in adapted.assignments:
        if a.shares is not None:
            continue
        entry = entries[a.site.name]
        for name, p in a.method.declare(a.site).items():
            if not isinstance(p, Param) or p.train or p.seed is None:
                continue
            W = a.site.leaf().op
            if p.scope == "site":
                start = Start(a.site.name, a.site.kind, W, adapted.plan.seed, a.method)
                out[f"{a.site.name}.{name}"] = make(p, p.shape, start, name, False)
            elif (key := entry.shared[name][0]) not in out and pool is not None:
                start = Start(p.scope, "shared", W, adapted.plan.seed, a.method)
                out[key] = make(p, tuple(pool.get(key).shape), start, key, False)
    return out
