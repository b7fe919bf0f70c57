"""Choose after having seen gradients."""

from __future__ import annotations

from torch import Tensor

from . import Rule, View, rule


@rule(paper="arXiv:2406.13175")
class Calibrate(Rule):
    """For the first `steps` optimiser steps nothing moves and the gradients of W are summed; then the method says what its
    tensors are (`calibrated(view, G)`) and training starts, with an optimiser that has seen nothing.

    Source: the calibration set of Bhardwaj et al. 2024, taken from the data of training itself.
    """

    steps: int = 1

    def watches(self, view: View) -> bool:
        return view.step < self.steps

    def before(self, view: View) -> None:
        if view.step < self.steps:
            for name in view.trained():
                view.damp(name, 0.0)

    def after(self, view: View) -> None:
        if view.step <= self.steps:
            G: Tensor = view.gradient()
            view.s["G"] = view.s["G"] + G if "G" in view.s else G
        if view.step == self.steps:
            for name, t in view.method.calibrated(view, view.s.pop("G")).items():  # type: ignore[attr-defined]
                view.set(name, t, restart=True)
