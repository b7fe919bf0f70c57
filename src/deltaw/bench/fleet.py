"""Many adapters to load: a few different ones on disk, used under many names."""

from __future__ import annotations

from pathlib import Path

import torch

from .. import attach
from ..errors import SpecError
from .contender import method_of, plan_of
from .setting import Setting
from .subject import Subject


def adapters_on_disk(setting: Setting, subject: Subject, folder: Path, count: int, word: str = "lora") -> list[Path]:
    """`count` different adapters, random and not zero, as directories that deltaw and PEFT both read."""
    model = subject.twin()
    adapted = attach(model, plan_of(method_of(word, setting.rank, 0.0), model))
    random = torch.Generator().manual_seed(setting.seed)
    made = []
    for k in range(count):
        with torch.no_grad():
            for t in adapted.trainable().values():
                t.normal_(0, 0.01, generator=random)
        made.append(folder / f"{word.replace(':', '-').replace('=', '')}-{k}")
        adapted.save(made[-1])
    adapted.detach()
    return made


def need_memory(wanted: float, option: str) -> None:
    """SpecError if that many bytes are more than the machine has left."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return
    left = next((int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable:")), None)
    if left is not None and wanted > 0.9 * left:
        raise SpecError(
            f"{option} needs about {wanted / 1e9:.1f} GB of memory, {left / 1e9:.1f} GB are free: choose fewer"
        )


def bytes_in(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.iterdir())
