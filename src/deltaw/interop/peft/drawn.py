"""What PEFT's FOURIERFT and WAVEFT have in common: positions that are in no file, but follow from a seed."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from ...files.foreign import Inexpressible
from ...plan import Assignment
from ...spec import Method, Start
from .dialect import DENSE, Dialect, P, new, no_anchors, plain


class Drawn(Dialect):
    """Coefficients c at flat positions I, the first of torch's permutation of all positions."""

    kinds = DENSE
    patterns = {"n_frequency": "n_frequency_pattern"}
    handled = frozenset({"n_frequency", "scaling", "random_loc_seed", "n_frequency_pattern"})
    ignored = frozenset({"init_weights", "fan_in_fan_out"})
    word: ClassVar[str]
    usual: ClassVar[dict[str, float]]

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        return {"n_frequency": method.k, "scaling": plain(method.s), "random_loc_seed": method.seed}

    def method(self, f: dict[str, Any]) -> Method:
        f = {**self.usual, **f}
        return new(self.methods[0], k=f["n_frequency"], s=f["scaling"], seed=f["random_loc_seed"])

    def check(self, adapted: Any, config: dict[str, Any]) -> None:
        no_anchors(config, "n_frequency_pattern")

    def pack(self, a: Assignment, p: P) -> P:
        own = p["I"]
        if own.device.type != "meta" and own.any() and not torch.equal(own.cpu(), positions(a)):
            raise Inexpressible(f"{a.site.name}: PEFT draws its positions from a seed, and these are others")
        return {self.word: p["c"]}

    def unpack(self, a: Assignment, t: P, own: P) -> P:
        return {"c": t[self.word], "I": positions(a)}


def positions(a: Assignment) -> torch.Tensor:
    declared: Any = a.method.declare(a.site)["I"]
    return declared.init(Start(a.site.name, a.site.kind, a.site.leaf().op), declared.shape)  # type: ignore[no-any-return]
