"""Exports for other programs: a LoRA every server reads the same way, and the merged model as shards."""

from __future__ import annotations

import copy
import ctypes
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import SpecError
from ..sites import is_ours
from .disk import Writer, commit, json_writer, tensors_writer
from .foreign import formats
from .save import CARD, EXACT, TENSORS

if TYPE_CHECKING:
    from ..convert import Converted
    from ..merge import Merged

INDEX, CERTIFICATE = "model.safetensors.index.json", "merge_certificate.json"
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip


def save_lora(converted: Converted, directory: Any) -> Path:
    """A plain PEFT LoRA with the scale folded into B and alpha = r at every site: every reader gets the same scale.

    Sites of another rank are in rank_pattern and alpha_pattern. Modules trained in full go along as modules_to_save.
    """
    peft = formats()["peft"]
    config, tensors = peft.plain_lora(converted.adapted, converted.factors)
    files = {TENSORS: tensors_writer(tensors), peft.config_name: json_writer(config)}
    return commit(directory, files, [CARD, EXACT])


def save_model(merged: Merged, directory: Any, max_shard_bytes: int = 2 * 2**30) -> Path:
    """Stream a merged model to safetensors shards, index, merge_certificate.json and, for transformers, its configs.

    Beyond the base there is memory for one merged tensor, used for all: the headers are known from the base's shapes, and
    every tensor is written to its place in its shard. A shard holds max_shard_bytes, or one tensor that is larger.
    """
    from ..merge import Reused

    model = merged.adapted.model
    tensors = _contents(model, merged.certificate.untied)
    shards = _shards(tensors, max_shard_bytes)
    names = [f"model-{k:05d}-of-{len(shards):05d}.safetensors" for k in range(1, len(shards) + 1)]
    where = {t: name for name, shard in zip(names, shards) for t in shard}

    def write_all(path: Path) -> None:
        layouts = {n: _begin(path.parent / n, {t: tensors[t] for t in shard}) for n, shard in zip(names, shards)}
        changed = set(merged.names)
        for t, tensor in tensors.items():
            if t not in changed:
                _put(path.parent / where[t], layouts[where[t]][t], tensor)
        for t, tensor in merged.changed(Reused()):
            if t in where:  # the second name of a tensor that is still tied is not stored
                _put(path.parent / where[t], layouts[where[t]][t], tensor)

    files: dict[str, Writer] = {}
    for k, name in enumerate(names):
        files[name] = write_all if k == 0 else (lambda path: None)
    files |= _configs(model, merged.certificate.untied)
    files[CERTIFICATE] = json_writer(merged.certificate.to_dict())
    total = sum(_size(t) for t in tensors.values())
    files[INDEX] = json_writer({"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))})
    old = Path(directory).glob("model*.safetensors") if Path(directory).is_dir() else []
    return commit(directory, files, [p.name for p in old])


def _contents(model: nn.Module, untied: list[str]) -> dict[str, Tensor]:
    """The base's state dict by name; of names that stay tied, transformers stores the first only."""
    out: dict[str, Tensor] = {}
    seen: dict[int, str] = {}
    ties = callable(getattr(getattr(model, "config", None), "save_pretrained", None)) and not untied
    live = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in model.state_dict().items():
        if is_ours(name):
            continue
        first = seen.setdefault(id(live.get(name, tensor)), name)
        if first == name or not ties:
            out[name] = tensor
    return out


def _size(t: Tensor) -> int:
    return t.numel() * t.element_size()


def _shards(tensors: dict[str, Tensor], limit: int) -> list[list[str]]:
    if limit < 1:
        raise SpecError(f"max_shard_bytes must be positive; found {limit}")
    out: list[list[str]] = [[]]
    used = 0
    for name, tensor in tensors.items():
        if out[-1] and used + _size(tensor) > limit:
            out.append([])
            used = 0
        out[-1].append(name)
        used += _size(tensor)
    return out


def _begin(path: Path, tensors: dict[str, Tensor]) -> dict[str, int]:
    """Write the header of a safetensors file of its full length; returns where each tensor starts."""
    order = sorted(tensors, key=lambda n: (-tensors[n].element_size(), n))  # wide types first keeps all aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at, starts = 0, {}
    for name in order:
        t = tensors[name]
        if t.dtype not in DTYPES:
            raise SpecError(f"'{name}' has dtype {t.dtype}, which safetensors does not have")
        header[name] = {"dtype": DTYPES[t.dtype], "shape": list(t.shape), "data_offsets": [at, at + _size(t)]}
        starts[name] = at
        at += _size(t)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (math.ceil(len(text) / 8) * 8 - len(text))
    with open(path, "wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        handle.truncate(8 + len(text) + at)
    return {name: 8 + len(text) + start for name, start in starts.items()}


def _put(path: Path, start: int, tensor: Tensor) -> None:
    t = tensor.detach().cpu().contiguous()
    with open(path, "r+b", buffering=0) as handle:
        handle.seek(start)
        if _size(t):  # from where it lies: no copy as bytes
            left = memoryview((ctypes.c_char * _size(t)).from_address(t.data_ptr())).cast("B")
            while left:
                left = left[handle.write(left) :]


def _configs(model: nn.Module, untied: list[str]) -> dict[str, Writer]:
    out: dict[str, Writer] = {}
    config = getattr(model, "config", None)
    if callable(getattr(config, "save_pretrained", None)):
        config = copy.deepcopy(config)
        config.architectures = [type(model).__name__]  # type: ignore[union-attr]
        if untied:
            config.tie_word_embeddings = False  # type: ignore[union-attr]
        out["config.json"] = lambda path: config.save_pretrained(str(path.parent))  # type: ignore[union-attr]
    generation = getattr(model, "generation_config", None)
    if callable(getattr(generation, "save_pretrained", None)):
        out["generation_config.json"] = lambda path: generation.save_pretrained(str(path.parent))  # type: ignore[union-attr]
    return out
