"""Bytes on disk: whole directories or nothing, the same bytes for the same content, and no trust in what is read."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import SpecError, StateMismatch

Writer = Callable[[Path], None]


def tensors_writer(tensors: dict[str, Tensor]) -> Writer:
    """A writer of one safetensors file. One metadata entry only: several would be written in no fixed order."""

    def write(path: Path) -> None:
        ready = {k: tensors[k].detach().to("cpu", copy=True).contiguous() for k in sorted(tensors)}
        save_file(ready, str(path), metadata={"format": "pt"})

    return write


def json_writer(data: Any) -> Writer:
    text = json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"

    def write(path: Path) -> None:
        path.write_bytes(text.encode())

    return write


def commit(directory: Any, files: dict[str, Writer], stale: Iterable[str] = ()) -> Path:
    """Write all files under temporary names, then move them into place in the given order.

    A directory that does not exist appears complete or not at all. In one that exists the files are replaced one by
    one, the last one last, and `stale` names are removed; on an error before that nothing has changed.
    """
    target = Path(directory)
    if target.exists() and not target.is_dir():
        raise SpecError(f"{target} is a file; an adapter is written to a directory")
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = not target.exists()
    work = target.parent / f".{target.name}.{os.getpid()}.tmp" if fresh else target / f".writing.{os.getpid()}.tmp"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        for name, write in files.items():
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            write(work / name)
            _sync(work / name)
        if fresh:
            os.replace(work, target)
        else:
            for name in set(stale) - set(files):
                (target / name).unlink(missing_ok=True)
            for name in files:
                (target / name).parent.mkdir(exist_ok=True, parents=True)
                os.replace(work / name, target / name)
        _sync(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows has no handle for that
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise StateMismatch(
            f"{path}: a JSON object was expected; {error}. The file is damaged: copy it again"
        ) from error
    if not isinstance(data, dict):
        raise StateMismatch(f"{path}: a JSON object was expected; found {type(data).__name__}")
    return data


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU; refuses damaged files and values that are not finite."""
    if not path.is_file():
        raise StateMismatch(f"{path} does not exist; an adapter directory holds its tensors there")
    try:
        tensors = load_file(str(path))
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise StateMismatch(
            f"{path} is no intact safetensors file ({error}): it is truncated or damaged; copy it again"
        ) from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise StateMismatch(
                f"{path}: '{name}' has {bad} values of {tensor.numel()} that are NaN or infinite; finite numbers were "
                "expected. The run that wrote it diverged: load an earlier checkpoint"
            )
    return tensors


def file_hash(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def tensor_hash(tensor: Tensor) -> str:
    """sha256 over dtype, shape and bytes."""
    return hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode() + raw(tensor)).hexdigest()


def raw(tensor: Tensor) -> bytes:
    """The bytes of a tensor, without numpy, which is no dependency."""
    t = tensor.detach().cpu().contiguous()
    return ctypes.string_at(t.data_ptr(), t.numel() * t.element_size()) if t.numel() else b""
