"""One site as a rule sees it, and the edits a rule can make there, which keep the optimiser's state in step."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .entry import Entry, attribute
from .errors import DeltawError, SpecError
from .methods.init import two_factors
from .ops import Affine, chain
from .sites import Site
from .sites.watch import mean_of_processes, several
from .spec import Method, Start, Tensors, change

if TYPE_CHECKING:
    from .rules import Engine

FIRST, SECOND = {"exp_avg", "m", "momentum_buffer"}, {"exp_avg_sq", "v"}  # moments, by the names optimisers give them


def remap(state: dict[str, Any], shape: torch.Size, source: Tensor) -> None:
    """Every state tensor of the parameter's old shape takes the form of `source`: entry i is the old entry source[i]
    (flat), or zero where that is -1. One counter of steps for all is left alone, whatever the optimiser; counters of single
    rows or columns (a "step" with ones for the other axes) become the smallest of what their entries bring along."""
    come, safe = source.flatten() >= 0, source.flatten().clamp(min=0)
    for key, t in state.items():
        if not isinstance(t, dict) and (not isinstance(t, Tensor) or t.dim() == 0):
            continue
        if isinstance(t, dict):
            raise SpecError(
                f"this optimiser's '{key}' is a coordinate system of its own: a rule changes which entries are trained, which "
                "needs an optimiser that remembers every entry by itself (AdamW, SGD)"
            )
        whole = (
            t.expand(shape)
            if key == "step" and t.dim() == len(shape) and all(a in (1, b) for a, b in zip(t.shape, shape))
            else t
        )
        if whole.shape != shape:
            raise SpecError(
                f"this optimiser's '{key}' has shape {tuple(t.shape)} for a tensor of shape {tuple(shape)}: a rule changes "
                "which entries are trained, which needs an optimiser that remembers every entry by itself (AdamW, SGD)"
            )
        old = whole.flatten() if t.numel() else t.new_zeros(1)
        new = torch.where(come, old[safe], 0).to(t.dtype).view(source.shape)
        alone = [d for d, (a, b) in enumerate(zip(t.shape, shape)) if a != b]
        state[key] = new.amin(alone, keepdim=True) if alone else new


class View:
    """See deltaw.methods.rules.View."""

    def __init__(
        self, engine: Engine, entry: Entry, ends: list[tuple[Site, bool]], method: Method, order: tuple[int, int]
    ):
        self.engine, self.entry, self.ends, self.method, self.order = engine, entry, ends, method, order
        self.site, self.name = ends[0][0], ends[0][0].name
        self.s: dict[str, Tensor] = {}
        self.scale: float | None = None  # of factors(), once it was asked for
        self.whole = method == engine.adapted.method_at(self.name)  # not one inside a wrapper

    @property
    def step(self) -> int:
        return self.engine.step

    @property
    def total(self) -> int:
        if self.engine.total is None:
            raise SpecError(
                "a rule here follows a schedule over the whole run and has to know its length: adapted.optimizer(lr, steps=N), N optimiser "
                "steps in all. deltaw.train.run and its trainer say so by themselves"
            )
        return self.engine.total

    @property
    def length(self) -> int | None:
        return self.engine.total

    def tell(self, what: str) -> None:
        self.engine.adapted.events.append({"step": self.engine.step, "site": self.name, "what": what})

    @property
    def p(self) -> Tensors:
        return self.entry.tensors(dict.fromkeys(self.entry.signals.values(), torch.empty(0)))

    def trained(self) -> dict[str, Tensor]:
        return {k: t for k, t in self.entry.named() if t.requires_grad}

    def base(self) -> Tensor:
        return self.draw("").dense()

    @torch.no_grad()
    def weight(self) -> Tensor:
        w: Tensor = self.entry.layer(self.site.leaf(), {}).op.dense()  # type: ignore[attr-defined]
        return w.to(torch.promote_types(w.dtype, torch.float32))

    def gradient(self) -> Tensor:
        return self._seen(True, "gradient of the weight", lambda: torch.zeros_like(self.base()))

    def inputs(self) -> Tensor:
        return self._seen("inputs", "input of the layer", lambda: torch.zeros(self.base().shape[1]))

    def _seen(self, what: Any, words: str, nothing: Callable[[], Tensor]) -> Tensor:
        """The mean over processes of what was summed at this site since the last step."""
        found = [w.sum for w in self.engine.watched.get((self.name, what), ()) if w.sum is not None]
        if not found and any(w.sum is not None for (_, kind), others in self.engine.watched.items() if kind == what for w in others):
            found = [nothing()]  # a layer that no token reached
        if not found:
            raise SpecError(
                f"{self.name}: no {words} was seen before this step. A rule needs it here: call the layers as "
                "modules, in a model that was not compiled before, and make the optimiser before the first forward"
            )
        return mean_of_processes(torch.stack(found).sum(0))

    def draw(self, word: str) -> Start:
        seed = self.engine.adapted.plan.seed
        return Start(self.name, self.site.kind, self.site.leaf().op, seed, self.method).at(f"{word}/{self.step}", None)

    @torch.no_grad()
    def set(self, name: str, value: Tensor, source: Tensor | None = None, restart: bool = False) -> None:
        t, old = self.entry.get(name), self.entry.get(name).shape
        if value.shape == old:
            t.copy_(value)
        elif t.requires_grad:
            t, restart = self._resized(name, t, value), restart or source is None
        else:
            t.data, self.entry.kept = value.to(t).clone(), None
        if source is not None or restart:
            t.grad = None
        state = self.engine.optimizer.state
        if restart:
            state.pop(t, None)
        elif source is not None and t in state:
            remap(state[t], old, source)

    @torch.no_grad()
    def turn(
        self, name: str, value: Tensor, first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor]
    ) -> None:
        t, old = self.entry.get(name), self.entry.get(name).shape
        if value.shape == old:
            t.copy_(value)
        else:
            t = self._resized(name, t, value)
        t.grad = None
        state = self.engine.optimizer.state.get(t, {})
        for key, s in list(state.items()):
            if not isinstance(s, Tensor) or s.dim() == 0:
                continue
            if key == "step":  # a count a term: where the number of terms changes, all are as young as the youngest
                if value.shape != old:
                    state[key] = s.amin().expand([1 if a == 1 else b for a, b in zip(s.shape, value.shape)]).clone()
            elif key in FIRST | SECOND and s.shape == old:
                state[key] = first(s) if key in FIRST else second(s).clamp_(min=0)
            else:
                raise SpecError(f"this optimiser's '{key}' is no moment that follows a change of basis: use AdamW, or restart the tensor")

    def become(self, **values: Any) -> None:
        self.engine.adapted.reconfigure(self.name, values)
        self.method = self.engine.adapted.method_at(self.name) if self.whole else change(self.method, values)
        self.scale = None

    def _resized(self, name: str, t: Tensor, value: Tensor) -> nn.Parameter:
        """Another parameter in its place, here and in the optimiser: graphs that are still alive know the old one's size."""
        if several():
            raise SpecError(f"{self.name}.{name}: DDP cannot train a tensor whose size changes; use one process")
        new, optimizer = nn.Parameter(value.to(t).clone()), self.engine.optimizer
        self.entry.register_parameter(attribute(name), new)
        for group in optimizer.param_groups:
            group["params"] = [new if p is t else p for p in group["params"]]
        for unit in getattr(optimizer, "units", ()):
            unit.p = {role: new if p is t else p for role, p in unit.p.items()}
        if t in optimizer.state:
            optimizer.state[new] = optimizer.state.pop(t)
        return new

    def factors(self) -> tuple[Tensor, Tensor, float]:
        p, start = self.p, self.draw("")
        start.W, start.own = self.entry.shifted(start.W), self.entry.own
        if self.scale is None:
            B, A, s = two_factors(start, p)
            if not self._sums(start, s):
                raise SpecError(
                    f"{self.name}: {self.method} does more with B A than adding it to W, so it cannot be moved into W"
                )
            self.scale = s
        return p.B, p.A, self.scale

    @torch.no_grad()
    def _sums(self, start: Start, s: float) -> bool:
        """Is the map with factors B, A over W the one with s B A already in W and factors 0, A?"""
        n, p = start.W.shape[1], self.p
        B, A = (torch.sin(1.0 + torch.arange(t.numel(), device=t.device) ** 1.1).view_as(t).to(t) for t in (p.B, p.A))
        others = {k: getattr(p, k) for k in p.names()}
        trial, moved = Tensors(**others | {"B": B, "A": A}), Tensors(**others | {"B": torch.zeros_like(B), "A": A})
        x = torch.sin(2.0 + torch.arange(2 * n, device=A.device) ** 1.2).view(2, n).to(start.W.like)
        ids = torch.arange(min(n, 2), device=x.device)
        try:
            maps = (
                self.method.layer(Affine(start.W + chain(s * B, A)), moved),
                self.method.layer(Affine(start.W), trial),
            )
            got, want = (L.cols(ids) if start.kind == "embedding" else L(x) for L in maps)
        except (DeltawError, AttributeError, RuntimeError):  # it needs a signal
            return False
        near = 1e-4 if torch.finfo(want.dtype).eps < 1e-6 else 5e-2
        return torch.allclose(got.double(), want.double(), rtol=near, atol=near * float(want.abs().max()))

    def fold(self, B: Tensor, A: Tensor) -> None:
        self.entry.move(B, A)

    def damp(self, name: str, factor: float | Tensor) -> None:
        t = self.entry.get(name)
        self.engine.damped.append((t, t.detach().clone(), factor))
