"""Tasks of reasoning-gym: questions without end, each with a function that scores an answer."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import MissingExtra, SpecError, nearest

GYM = "reasoning_gym"
INSTALL = "pip install --no-deps reasoning-gym (the version used here is in requirements-demo.txt)"


REGISTERED = re.compile(r'^DATASET_NAME = "(\w+)"|^register_dataset\(\s*"(\w+)"', re.M)


def names() -> dict[str, str]:
    """Task -> the module that registers it, read from the source without importing anything."""
    out = {}
    for file in _root().rglob("*.py"):
        for match in REGISTERED.finditer(file.read_text(encoding="utf-8")):
            out[match[1] or match[2]] = ".".join((GYM, *file.relative_to(_root()).with_suffix("").parts))
    return dict(sorted(out.items()))


class Task:
    """`size` questions of one task. Question i is a function of seed + i; `entries` are rows of "question", "answer", "metadata".

    config: what the task itself knows (min_words, ...). Errors: MissingExtra without reasoning-gym or what a task
    of its needs, SpecError for names and values that it does not know.
    """

    def __init__(self, name: str, config: Mapping[str, Any] | None = None, seed: int = 0, size: int = 500):
        known = names()
        if name not in known:
            raise SpecError(f"reasoning-gym has no task '{name}'{nearest(name, known)}")
        above = known[name].split(".")[:-1]
        with bare(*(".".join(above[: k + 1]) for k in range(len(above)))):
            try:
                importlib.import_module(f"{GYM}.coaching")  # before the factory, which it imports in a circle
                importlib.import_module(known[name])
            except ModuleNotFoundError as error:
                raise MissingExtra(
                    f"the task '{name}' needs the package '{error.name}', which is not installed"
                ) from error
            dataset, settings = importlib.import_module(f"{GYM}.factory").DATASETS[name]
            fields = {f.name for f in dataclasses.fields(settings)}
            for word in config or {}:
                if word not in fields:
                    raise SpecError(f"the task '{name}' has no setting '{word}'{nearest(word, fields)}")
            try:
                self.made = dataset(config=settings(**{**(config or {}), "seed": seed, "size": size}))
                self.entries = [self.made[i] for i in range(size)]
            except (AssertionError, ValueError, TypeError) as error:
                raise SpecError(f"the task '{name}' refuses {dict(config or {})}: {error}") from error
        self.name = name

    def score(self, text: str, i: int) -> float:
        """The task's own score of a completion: of what stands in its last <answer> tag, or of all of it. 0 for what cannot be
        read as an answer."""
        inside = text.rpartition("<answer>")[2].partition("</answer>")[0] if "<answer>" in text else text
        try:
            return float(self.made.score_answer(inside.strip(), self.entries[i]))
        except Exception:  # a parser of a task meets arbitrary text here, and whatever it raises the answer is wrong
            return 0.0


def _root() -> Path:
    found = importlib.util.find_spec(GYM)
    if found is None or not found.submodule_search_locations:
        raise MissingExtra(f"this needs reasoning-gym: {INSTALL}")
    return Path(next(iter(found.submodule_search_locations)))


@contextlib.contextmanager
def bare(*packages: str) -> Iterator[None]:
    """reasoning-gym with empty packages in place of these of its own: those import all of its hundred tasks and so eleven more
    distributions, one of them (pycosat) in C and without a wheel. Afterwards its modules are as before."""
    root = _root()
    earlier = _take()
    try:
        for name in packages:
            package = ModuleType(name)
            package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
            sys.modules[name] = package
        yield
    finally:
        _take()
        sys.modules.update(earlier)


def _take() -> dict[str, ModuleType]:
    """Take reasoning-gym's modules out of sys.modules."""
    found = [n for n in sys.modules if n == GYM or n.startswith(GYM + ".")]
    return {n: sys.modules.pop(n) for n in found}
