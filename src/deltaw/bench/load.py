"""Loading adapters one after the other: the last of many against the first, and against PEFT."""

from __future__ import annotations

import gc
import itertools
import statistics
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..bank import Bank
from ..errors import need
from ..train.progress import Progress
from .clock import Timed, now, rounds
from .fleet import adapters_on_disk, bytes_in, need_memory
from .record import group
from .setting import Setting
from .subject import load

WHAT = (
    "seconds to load one more adapter, by how many are loaded, and to make another one the active one; the files are in the page cache, "
    "and a few different ones are loaded under many names"
)
FILES, EDGE, PEERS = 8, 50, 30


def measure(setting: Setting, progress: Progress) -> list[dict[str, Any]]:
    count = setting.count or (12 if setting.quick else 1000)
    with tempfile.TemporaryDirectory() as folder:
        return [g for dtype in setting.dtypes for g in one(setting, dtype, count, Path(folder) / dtype, progress)]


def one(setting: Setting, dtype: str, count: int, folder: Path, progress: Progress) -> list[dict[str, Any]]:
    subject = load(setting, dtype)
    files = adapters_on_disk(setting, subject, folder, min(FILES, count))
    peers = min(PEERS, count) if "peft" in setting.against else 0
    size = bytes_in(files[0])
    need_memory(size * count * subject.x.element_size() / 4 + size * peers, f"--count {count}")
    for k, path in enumerate(files):  # into the page cache, and every module once
        (path / "adapter_model.safetensors").read_bytes()
        if not k:
            spare = Bank(subject.twin())
            spare.add("warm", path)
            spare.close()
            del spare
    bank, theirs = Bank(subject.twin()), loader(subject.twin()) if peers else None
    if theirs is not None:
        loader(subject.twin())("warm", files[0])
    ours: list[float] = []
    other: list[float] = []
    gc.collect()
    gc.disable()  # a collection over all modules of 30 PEFT adapters would fall on whoever is next
    progress.begin(count, what=f"load {dtype}")
    try:
        for k in range(count):
            path = files[k % len(files)]
            began = now()
            bank.add(f"a{k}", path)
            ours.append(now() - began)
            if theirs is not None and k < peers:
                began = now()
                theirs(f"a{k}", path)
                other.append(now() - began)
            progress.step(k + 1)
    finally:
        gc.enable()
        progress.end()
    edge = max(1, min(EDGE, count // 4))
    raw = {f"first {edge}": ours[:edge], f"last {edge}": ours[-edge:], "all": ours}
    facts: dict[str, Any] = {
        "adapters": count, "different files": len(files), "bytes of one": size, "seconds for all": sum(ours), "bank": bank.report(),
    }  # fmt: skip
    out = [group(f"{dtype}: deltaw.Bank.add, {count} adapters", raw, [(f"last {edge}", f"first {edge}")], facts=facts)]
    if theirs is not None:
        part = max(1, min(5, peers // 3))
        facts = {"PEFT's median over the bank's over all": statistics.median(other) / statistics.median(ours)}
        raw = {"deltaw": ours[:peers], "peft": other}
        out.append(
            group(f"{dtype}: adapters 1 to {peers}, each against the same one", raw, [("peft", "deltaw")], facts=facts)
        )
        raw = {f"peft, first {part}": other[:part], f"peft, last {part}": other[-part:]}
        out.append(
            group(f"{dtype}: PEFT's growth over {peers} adapters", raw, [(f"peft, last {part}", f"peft, first {part}")])
        )
    work: dict[str, Timed] = {"deltaw": activation(bank.activate, count)}
    if theirs is not None:
        work["peft"] = activation(theirs.model.set_adapter, peers)  # type: ignore[attr-defined]
    times = rounds(setting, progress, f"activate {dtype}", work)
    pairs = [("peft", "deltaw")] if "peft" in work else []
    out.append(
        group(f"{dtype}: making another adapter the active one", {k: v["time"] for k, v in times.items()}, pairs)
    )
    bank.close()
    return out


def activation(activate: Callable[[str], Any], count: int) -> Timed:
    """Every call another adapter."""
    names = itertools.cycle([f"a{(7919 * k) % count}" for k in range(count)])

    def run() -> dict[str, float]:
        name = next(names)
        began = now()
        activate(name)
        return {"time": now() - began}

    return run


class loader:
    """PEFT on a twin: its first adapter by from_pretrained, every further one by load_adapter."""

    def __init__(self, twin: Any):
        self.twin, self.model = twin, None
        self.peft = need("peft", extra="peft")

    def __call__(self, name: str, path: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if self.model is None:
                self.model = self.peft.PeftModel.from_pretrained(self.twin, str(path), adapter_name=name)
            else:
                self.model.load_adapter(str(path), adapter_name=name)
