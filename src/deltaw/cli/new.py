"""deltaw new: a method to start from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from .output import say

TEMPLATE = '''"""{name}: say in one line what it is."""

from __future__ import annotations

from ...ops import Op, chain
from ...spec import Declared, Method, Param, Tensors, kaiming, method, zeros


@method(paper="arXiv:0000.00000")
class {name}(Method):
    """y = W x + b + s B A x, s = alpha / r. A (r, n), B (m, r) trained.

    Start: A ~ U(±1/sqrt n), B = 0, so the first output is the base's. Trainable per site: r (m + n).
    Source: authors and year, and the section with the formula. Trap: what a reader of the paper gets wrong.

    >>> from deltaw.methods import {name}
    >>> {name}(r=4).params(10, 6)["B"].shape
    (10, 4)
    """

    r: int = 8
    alpha: float = 8.0

    def params(self, m: int, n: int) -> Declared:
        return {{"A": Param((self.r, n), kaiming), "B": Param((m, self.r), zeros)}}

    def weight(self, W: Op, p: Tensors) -> Op:
        return W + (self.alpha / self.r) * chain(p.B, p.A)
'''


def run(
    key: Annotated[str, typer.Argument(help="The new method's key: the name of its file, such as lora_xs.")],
    name: Annotated[
        str | None, typer.Option("--class", help="Its class, as the paper writes it, such as LoRAXS.")
    ] = None,
) -> None:
    """Write the file of a new method, a working low-rank delta to edit, and nothing else."""
    from ..errors import SpecError
    from ..spec import METHODS

    if not re.fullmatch(r"[a-z][a-z0-9_]*", key):
        raise SpecError(f"a key is lower-case letters, digits and '_', and names a Python file; found '{key}'")
    if key in METHODS:
        raise SpecError(f"there is a method '{key}' already: {METHODS[key].__module__}")
    name = name or "".join(part.capitalize() for part in key.split("_"))
    if not name.isidentifier() or name in {cls.__name__ for cls in METHODS.table.values()}:
        raise SpecError(f"'{name}' cannot be the class: it is taken or no Python name; choose one with --class")
    path = Path(__file__).parents[1] / "methods" / "structure" / f"{key}.py"
    if path.exists():
        raise SpecError(f"{path} exists already")
    path.write_text(TEMPLATE.format(name=name), encoding="utf-8")
    say(f"{path}\nEdit it, then: deltaw check {key}")
