"""deltaw new: a file to start from: a method, an update rule, an initialisation, a rule, a rank policy or a compressor."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from .output import say

METHOD = '''"""{name}: say in one line what it is."""

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


UPDATE = '''"""{name}: say in one line what it is."""

from __future__ import annotations

from . import update
from .algebra import Adam, MatrixUpdate, Rsvd, Side, Sub


@update(paper="arXiv:0000.00000")
class {name}(MatrixUpdate):
    """P = leading singular vectors of G, W <- W - lr P Adam(Pᵀ G). Embeddings, the head, vectors: AdamW.

    Source: authors and year, and the section with the formula. Trap: what a reader of the paper gets wrong.
    """

    r: int | float = 0.25
    every: int = 200
    weight_decay: float = 0.0

    def rule(self) -> Sub:
        return Sub(Side(self.r, Rsvd()), Adam(), every=self.every)
'''

INIT = '''"""{name}: say in one line what it is."""

from __future__ import annotations

from torch import Tensor

from ...spec import Start, Tensors
from . import init, two_factors


@init(paper="arXiv:0000.00000")
class {name}:
    """A ~ N(0, 1 / n), B = 0: step 0 is W.

    Source: authors and year, and the section with the formula. Trap: what a reader of the paper gets wrong.
    """

    def fill(self, start: Start, p: Tensors, stats: dict[str, Tensor]) -> None:
        B, A, _ = two_factors(start, p)
        A.copy_(start.at("A", None).normal(tuple(A.shape), A.shape[1] ** -0.5))
        B.zero_()
'''

RULE = '''"""{name}: say in one line what it is."""

from __future__ import annotations

from . import Rule, View, rule


@rule(paper="arXiv:0000.00000")
class {name}(Rule):
    """After every `every`-th optimiser step t <- share t, for each trained tensor t of a site.

    Source: authors and year, and the section with the formula. Trap: what a reader of the paper gets wrong.
    """

    every: int = 100
    share: float = 0.5

    def after(self, view: View) -> None:
        if view.step % self.every == 0:
            for name, t in view.trained().items():
                view.set(name, self.share * t)
'''

RANKS = '''"""{name}: say in one line what it is."""

from __future__ import annotations

from typing import Any

from ...spec import Start
from ..init import innermost
from . import allocators, ranks


@ranks(paper="arXiv:0000.00000")
class {name}:
    """Ranks in proportion to |W|_F², between r_min and r_max, at the parameters that the methods as written cost.

    Source: authors and year, and the section with the formula. Trap: what a reader of the paper gets wrong.
    """

    r_min: int = 1
    r_max: int = 32

    def ranks(self, starts: list[Start], stats: dict[str, dict[str, Any]]) -> dict[str, int]:
        score = {{s.name: float(s.W.dense().square().sum()) for s in starts}}
        cost = {{s.name: float(sum(s.W.shape)) for s in starts}}
        budget = sum(innermost(s.method).r * cost[s.name] for s in starts)  # type: ignore[attr-defined]
        return allocators.proportional(score, budget, self.r_min, {{s.name: min(self.r_max, *s.W.shape) for s in starts}}, cost)
'''

COMPRESS = '''"""{name}: say in one line what it is."""

from __future__ import annotations

from torch import Tensor

from . import compressor


@compressor(paper="arXiv:0000.00000")
class {name}:
    """W' = W with all but the share `keep` of its largest entries set to 0; the shape stays. Looks at no data.

    Source: authors and year, and the section with the formula. Trap: what a reader of the paper gets wrong.
    """

    def weight(self, W: Tensor, stats: dict[str, Tensor], keep: float) -> tuple[Tensor]:
        kept = W.abs().flatten().topk(max(1, round(keep * W.numel()))).indices
        out = W.new_zeros(W.numel())
        return (out.index_copy(0, kept, W.flatten()[kept]).view_as(W),)
'''

TEMPLATES = {"structure": METHOD, "update": UPDATE, "init": INIT, "rules": RULE, "rank": RANKS, "compress": COMPRESS}


def run(
    key: Annotated[str, typer.Argument(help="The new method's key: the name of its file, such as lora_xs.")],
    name: Annotated[
        str | None, typer.Option("--class", help="Its class, as the paper writes it, such as LoRAXS.")
    ] = None,
    axis: Annotated[str, typer.Option(help=f"One of {', '.join(TEMPLATES)}.")] = "structure",
) -> None:
    """Write the file of a new method (or of another axis: see --axis), a working one to edit, and nothing else."""
    from ..errors import SpecError, nearest
    from ..spec import METHODS
    from ..testing import AXES

    if axis not in TEMPLATES:
        raise SpecError(f"no axis '{axis}' to begin in{nearest(axis, TEMPLATES)} (known: {', '.join(TEMPLATES)})")
    known = METHODS if axis == "structure" else AXES[axis]

    if not re.fullmatch(r"[a-z][a-z0-9_]*", key):
        raise SpecError(f"a key is lower-case letters, digits and '_', and names a Python file; found '{key}'")
    if key in known:
        raise SpecError(f"there is a{'n' if axis[0] in 'iu' else ''} {known.what} '{key}' already: {known[key].__module__}")
    name = name or "".join(part.capitalize() for part in key.split("_"))
    if not name.isidentifier() or name in {cls.__name__ for cls in known.table.values()}:
        raise SpecError(f"'{name}' cannot be the class: it is taken or no Python name; choose one with --class")
    path = Path(__file__).parents[1] / "methods" / axis / f"{key}.py"
    if path.exists():
        raise SpecError(f"{path} exists already")
    path.write_text(TEMPLATES[axis].format(name=name), encoding="utf-8")
    say(f"{path}\nEdit it, then: deltaw check {key if axis == 'structure' else f'{axis}/{key}'}")
