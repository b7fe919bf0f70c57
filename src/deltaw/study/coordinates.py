"""The coordinate check: do activations keep their size when the model gets wider and is trained for a few steps?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SpecError
from ..optimize import optimizer
from ..parametrise import mup, umup
from ..report.panels import panels
from ..sites.find import output_head

Make = Callable[[int], nn.Module]
STANDARD, MUP, UMUP = "standard", "mup", "umup"


@dataclass(frozen=True)
class Coordinates:
    """rows: mean |activation| of every layer, width, seed and number of steps made, under each parametrisation."""

    rows: list[dict[str, Any]]
    lr: dict[str, float]

    def curve(self, parametrisation: str, layer: str, step: int) -> list[tuple[float, float]]:
        """[(width, size)], seeds averaged in the logarithm."""
        found: dict[int, list[float]] = {}
        for r in self.rows:
            if (r["parametrisation"], r["layer"], r["step"]) == (parametrisation, layer, step) and 0 < r[
                "size"
            ] < math.inf:
                found.setdefault(r["width"], []).append(math.log(r["size"]))
        return [(float(w), math.exp(sum(v) / len(v))) for w, v in sorted(found.items())]

    def slope(self, parametrisation: str, layer: str, step: int | None = None) -> float:
        """d log size / d log width after `step` steps (the last by default): 0 keeps its size; NaN where it is zero throughout."""
        points = self.curve(parametrisation, layer, self.steps[-1] if step is None else step)
        if len(points) < 2:
            return math.nan
        x, y = ([math.log(p[i]) for p in points] for i in (0, 1))
        mx, my = sum(x) / len(x), sum(y) / len(y)
        return sum((a - mx) * (b - my) for a, b in zip(x, y)) / sum((a - mx) ** 2 for a in x)

    @property
    def layers(self) -> list[str]:
        return list(dict.fromkeys(r["layer"] for r in self.rows))

    @property
    def steps(self) -> list[int]:
        return sorted({r["step"] for r in self.rows})

    @property
    def parametrisations(self) -> list[str]:
        return list(dict.fromkeys(r["parametrisation"] for r in self.rows))

    def to_dict(self) -> dict[str, Any]:
        slopes = {p: {layer: self.slope(p, layer) for layer in self.layers} for p in self.parametrisations}
        return {"lr": self.lr, "steps": self.steps[-1], "slopes": slopes, "rows": self.rows}

    def picture(self, layer: str | None = None) -> str:
        """SVG: size over width, a panel for each parametrisation, a curve for each number of steps; the last layer by default."""
        layer = layer or self.layers[-1]
        found = {p: {f"{t} steps": self.curve(p, layer, t) for t in self.steps} for p in self.parametrisations}
        return panels(found, "width", f"mean |activation| of {layer}")

    def write(self, path: str | Path, layer: str | None = None) -> Path:
        Path(path).write_text(self.picture(layer), encoding="utf-8")
        return Path(path)


def coordinates(
    make: Make,
    widths: Sequence[int],
    loss: Callable[[nn.Module], Tensor],
    *,
    base: int | None = None,
    parametrisations: Sequence[str] = (STANDARD, MUP),
    lr: float | dict[str, float] = 1e-2,
    steps: int = 4,
    seeds: Sequence[int] = (0, 1, 2),
    inner: Any = "adamw",
    layers: Callable[[str, nn.Module], bool] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Coordinates:
    """Train make(width) for a few steps on one batch, in each parametrisation, and measure mean |output| of its layers.

    make: a fresh model, drawn by torch's generator, which is seeded here. loss: runs the model on the batch, the same for every width.
    base: the width whose standard parametrisation muP keeps (the smallest by default). lr: one rate, or one for each parametrisation.
    layers: which modules to look at, by name and module; by default those without children. progress(models done, all of them). Right is what is flat in width, or
    falls; what grows will need a smaller rate at every larger width. Heads of muP start at zero here, where they are not tied to a table: drawn ones fall like 1 / sqrt(width)
    before they have learnt anything, by intent. Source: Yang et al. 2022, appendix D.1. Trap: with a rate that is too small nothing grows, whatever the parametrisation.
    """
    if len(set(widths)) < 2:
        raise SpecError(f"a coordinate check compares at least two widths; found {list(widths)}")
    if odd := [p for p in parametrisations if p not in (STANDARD, MUP, UMUP)]:
        raise SpecError(f"no parametrisation '{odd[0]}' (known: {STANDARD}, {MUP}, {UMUP})")
    rates = {p: float(lr[p] if isinstance(lr, dict) else lr) for p in parametrisations}
    chosen, rows = layers or (lambda name, m: not any(True for _ in m.children())), []
    base, widest = base or min(widths), max(widths)
    done, total = 0, len(parametrisations) * len(widths) * len(seeds)
    with torch.random.fork_rng(devices=[]):
        for which in parametrisations:
            for width in widths:
                for seed in seeds:
                    torch.manual_seed(seed)
                    model = make(width)
                    rule = inner
                    if which == MUP:
                        rule = mup(
                            model,
                            make(base),
                            delta=make(widest if widest != base else 2 * base),
                            zero_readout=not _tied(model),  # a table cannot start at zero
                            inner=inner,
                        )
                    elif which == UMUP:
                        rule = umup(model, seed=seed, inner=inner)
                    for step, sizes in enumerate(
                        _sizes(model, optimizer(model, rule, rates[which]), loss, steps, chosen)
                    ):
                        more = {"parametrisation": which, "width": width, "seed": seed, "step": step}
                        rows += [{**more, "layer": layer, "size": size} for layer, size in sizes.items()]
                    done += 1
                    if progress is not None:
                        progress(done, total)
    return Coordinates(rows, rates)


def _tied(model: nn.Module) -> bool:
    head = output_head(model)
    return head is not None and any(isinstance(m, nn.Embedding) and m.weight is getattr(head, "weight", None) for m in model.modules())


def _sizes(model: nn.Module, optimizer: Any, loss: Any, steps: int, chosen: Any) -> list[dict[str, float]]:
    out: list[dict[str, float]] = []

    def look(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, y: Any) -> None:
            if isinstance(y, Tensor) and y.is_floating_point():
                out[-1].setdefault(name, float(y.detach().abs().mean()))

        return hook

    hooks = [m.register_forward_hook(look(n)) for n, m in model.named_modules() if n and chosen(n, m)]
    try:
        for step in range(steps + 1):
            out.append({})
            optimizer.zero_grad()
            value = loss(model)
            if step < steps:
                value.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    finally:
        for hook in hooks:
            hook.remove()
    return out
