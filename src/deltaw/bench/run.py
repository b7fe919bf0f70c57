"""One benchmark from its setting to its record."""

from __future__ import annotations

import importlib
from typing import Any

from ..train.progress import Progress
from . import record as records
from .setting import Setting, prepare


class Notes(Progress):
    """Passes everything on and keeps the notes for the record."""

    def __init__(self, inner: Progress):
        self.inner, self.found = inner, list[str]()

    def begin(self, total: int, done: int = 0, what: str = "measuring") -> None:
        self.inner.begin(total, done, what)

    def step(self, done: int) -> None:
        self.inner.step(done)

    def note(self, text: str, warning: bool = False) -> None:
        self.found.append(text)
        self.inner.note(text, warning)

    def end(self) -> None:
        self.inner.end()


def run(kind: str, setting: Setting, progress: Progress, command: list[str] | None = None) -> dict[str, Any]:
    """Measure and return the record (see `record`). kind: the module of this package that measures."""
    module = importlib.import_module(f".{kind}", __package__)
    notes = Notes(progress)
    record = records.begin(command)
    record |= {"kind": kind, "what": module.WHAT, "setting": setting.to_dict(), "notes": []}
    record |= prepare(setting, notes)
    try:
        record["groups"] = module.measure(setting, notes)
    finally:
        progress.end()
    if setting.quick:
        notes.found.append("--quick: shows that it runs; the numbers mean nothing")
    record["notes"] += notes.found[1:]  # the first says what prepare did, which the record has in fields
    return records.finish(record)
