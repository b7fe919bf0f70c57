"""Which base is this? Two hashes that do not depend on the dtype or device it was loaded in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..sites import is_ours, leaf_site
from ..sites.base import is_coded
from .disk import raw

ENTRIES = 64


def fingerprint(model: nn.Module, without: Iterable[str] = ()) -> dict[str, str]:
    """{"structure": sha256, "content": sha256} of the base parameters, without ours and those of modules in `without`.

    structure: sorted names and shapes (a quantised layer counts with the shape it stands for). content: up to 64
    evenly spaced entries of every parameter, rounded to bfloat16, so that a checkpoint gives the same hash in float32
    and in bfloat16, on any device; no sums, which would depend on the order of addition. Quantised layers have a
    structure only. content is "" for a model without data (meta device).
    """
    structure, content = hashlib.sha256(), hashlib.sha256()
    blank = True
    for name, shape, tensor in _base(model, without):
        structure.update(f"{name}{shape}\n".encode())
        if tensor is not None and tensor.device.type != "meta":
            content.update(name.encode() + sample(tensor))
            blank = False
    return {"structure": structure.hexdigest(), "content": "" if blank else content.hexdigest()}


def sample(tensor: Tensor) -> bytes:
    """Evenly spaced entries in bfloat16, as bytes."""
    flat = tensor.detach().reshape(-1)
    count = min(ENTRIES, flat.numel())
    at = torch.arange(count, device=flat.device) * flat.numel() // max(count, 1)
    return raw(flat[at].to(torch.float32).to(torch.bfloat16))


def _base(model: nn.Module, without: Iterable[str]) -> Iterator[tuple[str, tuple[int, ...], Tensor | None]]:
    skip = tuple(without)
    opaque: dict[str, tuple[int, int]] = {}
    for name, module in model.named_modules():
        if is_ours(name) or not isinstance(module, nn.Linear):
            continue
        coded = is_coded(module._parameters.get("weight"))
        if coded or type(module).__module__.startswith("bitsandbytes"):
            site = leaf_site(name, module)
            if site is not None and site.kind == "opaque":
                opaque[name] = site.shape
    # a layer of codes (deltaw.quantise) stands where its weight stood, so that the order of names is the dense model's
    found: dict[str, tuple[tuple[int, ...], Tensor | None]] = {
        f"{n}.weight": ((m.out_features, m.in_features), None) for n, m in model.named_modules() if hasattr(m, "codec") and not is_ours(n)
    }
    for name, p in model.named_parameters():
        path, _, word = name.rpartition(".")
        if not is_ours(name):
            packed = path in opaque and word == "weight"
            found[name] = (opaque[path], None) if packed else (tuple(p.shape), p)
    for name in sorted(found):
        if not any(_inside(name.rpartition(".")[0], s) for s in skip):
            yield name, *found[name]


def _inside(path: str, name: str) -> bool:
    """`name`, a suffix as in Plan.train_modules, names this module or one that contains it."""
    return f".{name}." in f".{path}."


def card(model: nn.Module, without: Iterable[str] = ()) -> dict[str, Any]:
    """The fingerprint as it is stored: with the dtypes, and two bfloat16 entries of every parameter for `check`."""
    without = tuple(without)
    parts, dtypes = [], set()
    for _, _, tensor in _base(model, without):
        if tensor is None or tensor.device.type == "meta" or tensor.numel() == 0:
            parts.append("-" * 8)
            dtypes.add("quantised" if tensor is None else str(tensor.dtype))
            continue
        dtypes.add(str(tensor.dtype))
        flat = tensor.detach().reshape(-1)
        pair = torch.stack([flat[flat.numel() // 3], flat[2 * flat.numel() // 3]])
        parts.append(raw(pair.to(torch.float32).to(torch.bfloat16)).hex())
    return {**fingerprint(model, without), "dtypes": sorted(dtypes), "sample": "".join(parts)}


COARSE = {"torch.float16", "quantised"}  # a float32 checkpoint loaded so is not the float32 one rounded to bfloat16


def check(saved: dict[str, Any], here: dict[str, Any]) -> str | None:
    """Why these are not the same base; None if they are. Exact, but for float16 and quantised layers, where every
    sampled entry has to agree to one bfloat16 step."""
    if saved.get("structure") != here["structure"]:
        return "its parameters have other names or shapes"
    if not saved.get("content") or not here["content"] or saved["content"] == here["content"]:
        return None
    a, b = str(saved.get("sample", "")), here["sample"]
    if COARSE & {*saved.get("dtypes", ()), *here["dtypes"]} and len(a) == len(b):
        x, y = _numbers(a), _numbers(b)
        if bool(
            ((x - y).abs() <= torch.maximum(x.abs(), y.abs()) * 2.0**-7 + 2.0**-24).logical_or((x - y).isnan()).all()
        ):
            return None
    return "its parameters have the same names and shapes but other values"


def _numbers(text: str) -> Tensor:
    """The sampled entries; NaN where there was nothing to sample."""
    words = [text[k : k + 4] for k in range(0, len(text), 4)]
    try:
        codes = [0x7FC0 if w == "----" else int.from_bytes(bytes.fromhex(w), "little") for w in words]
    except ValueError:
        return torch.full((len(words),), torch.inf)
    return torch.tensor([c << 16 for c in codes], dtype=torch.int64).to(torch.uint32).view(torch.float32)
