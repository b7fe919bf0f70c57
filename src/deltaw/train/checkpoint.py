"""Checkpoints: an adapter directory, and the rest of a run's state as one safetensors and one JSON file.

    checkpoint-120/
        adapter/              what adapted.save writes: usable on its own
        state.safetensors     optimiser moments, random states
        state.json            the same state's structure and plain values, the data's digest
        trainer_state.json    the Trainer's counters

Written under another name and renamed at the end, so that a kill leaves the earlier checkpoint or the new one, never
half of one. Nothing is pickled.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import StateMismatch

NAME = re.compile(r"checkpoint-(\d+)")
ADAPTER, TENSORS, STATE = "adapter", "state.safetensors", "state.json"


def flatten(tree: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """`tree` with its tensors moved into `tensors` and everything in a form that JSON keeps: {"@": kind, ...}."""
    if isinstance(tree, Tensor):
        path = path if path not in tensors else f"{path}#{len(tensors)}"  # keys may hold dots themselves
        tensors[path] = tree.detach().cpu().contiguous().clone()
        return {"@": "tensor", "name": path}
    if isinstance(tree, dict):
        items = [[flatten(k, {}, path), flatten(v, tensors, f"{path}.{k}")] for k, v in tree.items()]
        return {"@": "dict", "items": items}
    if isinstance(tree, (list, tuple)):
        return {
            "@": type(tree).__name__,
            "items": [flatten(v, tensors, f"{path}.{i}") for i, v in enumerate(tree)],
        }
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    raise StateMismatch(f"checkpoint: '{path}' is a {type(tree).__name__}, which is neither a tensor nor plain data")


def restore(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `flatten`."""
    if not isinstance(tree, dict):
        return tree
    kind = tree.get("@")
    if kind == "tensor":
        return tensors[tree["name"]]
    if kind == "dict":
        return {restore(k, tensors): restore(v, tensors) for k, v in tree["items"]}
    items = [restore(v, tensors) for v in tree["items"]]
    return tuple(items) if kind == "tuple" else items


def random_state() -> dict[str, Any]:
    """Python's, numpy's and torch's generators (CUDA's of the current device)."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def write(folder: Path, state: dict[str, Any]) -> None:
    """`state` (plain data and tensors, nested) into an open checkpoint folder."""
    tensors: dict[str, Tensor] = {}
    tree = flatten(state, tensors)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / TENSORS)
    (folder / STATE).write_text(json.dumps(tree), encoding="utf-8")


def read(folder: Path) -> dict[str, Any]:
    """The state of a checkpoint; StateMismatch for one that is damaged or of another kind."""
    try:
        tree = json.loads((folder / STATE).read_text(encoding="utf-8"))
        return restore(tree, load_file(folder / TENSORS))  # type: ignore[no-any-return]
    except FileNotFoundError as error:
        raise StateMismatch(
            f"{folder} is no checkpoint of deltaw: {Path(error.filename or STATE).name} is missing"
        ) from None
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise StateMismatch(f"{folder}: the checkpoint is damaged ({error})") from error


def find(out: Path, resume: bool | str | os.PathLike[str]) -> Path | None:
    """The checkpoint to go on from: the newest complete one under `out`, or the one that is named."""
    if resume is False:
        return None
    if resume is not True:
        path = Path(resume).expanduser()
        if not (path / STATE).is_file():
            inner = find(path, True) if path.is_dir() else None
            if inner is None:
                raise StateMismatch(f"resume: {path} is neither a checkpoint nor a run with one")
            return inner
        return path
    return max(complete(out), key=lambda c: step_of(c), default=None)


def complete(out: Path) -> list[Path]:
    return [p for p in out.glob("checkpoint-*") if NAME.fullmatch(p.name) and (p / STATE).is_file()]


def step_of(folder: Path) -> int:
    found = NAME.fullmatch(folder.name)
    return int(found.group(1)) if found else -1


def commit(new: Path, folder: Path, keep: int) -> None:
    """Give a finished checkpoint its name and remove all but the newest `keep`."""
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(new, folder)
    for old in sorted(complete(folder.parent), key=step_of)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
