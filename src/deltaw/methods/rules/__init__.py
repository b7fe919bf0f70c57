"""Rules: what happens to tensors between optimiser steps, besides the step. One file each; the key is the file name.

A rule is a frozen dataclass that is its own configuration. It acts before an optimiser step (gradients are there) and
after it, once per *step*: micro-batches of an accumulation and evaluations do not count. A complete rule:

    @rule(paper="(an example)")
    class Restart(Rule):
        '''Every `every` steps the trained tensors go back to zero, remembering how far they had come.'''

        every: int = 100

        def start(self, view: View) -> dict[str, Tensor]:
            return {"far": torch.zeros(())}

        def after(self, view: View) -> None:
            if view.step % self.every == 0:
                for name, t in view.trained().items():
                    view.s["far"] += t.norm()
                    view.set(name, torch.zeros_like(t), restart=True)

A method asks for rules in `Method.rules()`, a plan in `Plan(rules=(Restart(every=50),))`. All memory of a rule is in `view.s`
(tensors, saved with the optimiser's state) or in tensors of the method, so that a resumed run is the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from torch import Tensor

from ...spec import RULES, Method, Start, Tensors, dataclass_transform

T = TypeVar("T")


class View(Protocol):
    """One site as a rule sees it (deltaw.edits is the real one). Edits carry the optimiser's state along."""

    name: str  # the site
    method: Method  # the method that asked for the rule, also inside a wrapper; for a plan's rule the site's
    step: int  # optimiser steps made so far: 0 in `before` of the first, 1 in `after` of it
    total: int  # optimiser steps of the whole run; SpecError where nobody said (adapted.optimizer(lr, steps=N))
    length: int | None  # the same, or None
    order: tuple[int, int]  # the layer this site is in, counted among the layers that have the rule, and their number
    s: dict[str, Tensor]  # what the rule remembers here

    @property
    def p(self) -> Tensors:
        """The tensors of the site; trained ones have their gradients."""
        ...

    def trained(self) -> dict[str, Tensor]:
        """Those that the optimiser moves."""
        ...

    def base(self) -> Tensor:
        """W (m, n), in float32 at least."""
        ...

    def weight(self) -> Tensor:
        """W' (m, n): the weight as it is now."""
        ...

    def gradient(self) -> Tensor:
        """The gradient of W' (m, n) over everything since the last step; `Rule.watches` must have asked for it."""
        ...

    def inputs(self) -> Tensor:
        """(n,): the sum of the squares of every input feature since the last step; `Rule.watches` must have said "inputs"."""
        ...

    def draw(self, word: str) -> Start:
        """What an initialiser gets, with random numbers of their own for this site and step."""
        ...

    def set(self, name: str, value: Tensor, source: Tensor | None = None, restart: bool = False) -> None:
        """New values, perhaps of another size. The optimiser's state stays as it is; or entry i takes over that of the
        old entry source[i] (flat; -1: starts at zero); or (restart) the tensor is as if never stepped."""
        ...

    def turn(
        self, name: str, value: Tensor, first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor]
    ) -> None:
        """The tensor in another basis, perhaps of another size: the optimiser's first and second moments become what
        `first` and `second` make of them; step counts stay."""
        ...

    def become(self, **values: Any) -> None:
        """Other values in the configuration of the method here (r, alpha), which is what will be saved."""
        ...

    def tell(self, what: str) -> None:
        """For the run's log: what the rule did here, or (said at the first site) everywhere."""
        ...

    def factors(self) -> tuple[Tensor, Tensor, float]:
        """(B, A, s) where the method is a function of W + s B A, so that parts of s B A may be folded; SpecError elsewhere."""
        ...

    def fold(self, B: Tensor, A: Tensor) -> None:
        """W <- W + B A at this site, as a constant that is kept and saved with the adapter: the base is not changed. A rule
        that takes the same away from s B A has not changed the function."""
        ...

    def damp(self, name: str, factor: float | Tensor) -> None:
        """In `before`: the coming step moves this tensor only by `factor` of the way (entry by entry), as a lower rate would."""
        ...


class Rule:
    """See the module. Override what is needed; `..._all` where the sites are looked at together."""

    key: ClassVar[str]
    paper: ClassVar[str]
    allocates: ClassVar[bool] = False  # it changes ranks: a run in which it never told of anything deserves a warning
    update: ClassVar[str] = "adamw"  # the update rule that plain AdamW gives way to, where the rule needs more of it

    def start(self, view: View) -> dict[str, Tensor]:
        """What to remember at a site, before the first step."""
        return {}

    def watches(self, view: View) -> bool | str:
        """Will the next step ask for `view.gradient()` (True; costs one m x n buffer while it does) or for `view.inputs()` ("inputs")?"""
        return False

    def before(self, view: View) -> None: ...

    def after(self, view: View) -> None: ...

    def before_all(self, views: list[Any]) -> None:
        for view in views:
            self.before(view)

    def after_all(self, views: list[Any]) -> None:
        for view in views:
            self.after(view)


@dataclass_transform(frozen_default=True)
def rule(*, paper: str) -> Callable[[type[T]], type[T]]:
    """Register a rule under the name of its module."""

    def register(cls: type[T]) -> type[T]:
        done: Any = dataclass(frozen=True)(cls)
        done.key, done.paper = cls.__module__.rsplit(".", 1)[-1], paper
        RULES.add(done.key, done)
        return done  # type: ignore[no-any-return]

    return register
