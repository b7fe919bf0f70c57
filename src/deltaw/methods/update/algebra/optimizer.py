"""A torch optimiser over rules: what belongs together (a matrix, the two factors of a site) moves together.

It is an ordinary torch.optim.Optimizer: schedulers, accelerate, transformers' Trainer, DDP and the rules of adapters see
nothing new. Its state holds tensors only, nested by word, and is restored with its own dtypes (torch would cast it to
the parameter's).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ....errors import SpecError, StateMismatch
from ....sites.watch import mean_of_processes
from .draw import Draw


@dataclass(frozen=True)
class Step:
    """What a rule is told about one step: rates and decoupled weight decays by role, and a source of random numbers."""

    lr: dict[str, float]
    decay: dict[str, float]
    seed: int
    name: str

    def draw(self, word: str, step: int) -> Draw:
        return Draw(self.seed, f"{self.name}.{word}", step)


class Rule:
    """How the tensors of one unit move: `p`, `g` and `state` are by role."""

    def step(self, p: dict[str, Tensor], g: dict[str, Tensor], state: dict[str, dict[str, Any]], now: Step) -> None:
        raise NotImplementedError

    def rest(self, state: Callable[[], dict[str, dict[str, Any]]]) -> None:
        """A step of the optimiser in which the unit has no gradient."""


@dataclass
class Unit:
    """Tensors that move together under one rule: role -> parameter. The name keys its random numbers."""

    name: str
    rule: Rule
    p: dict[str, nn.Parameter]
    arrived: int = 0  # gradients that came in since the last step, where steps are made inside backward
    moved: bool = False  # and it has made this one


class SubOptimizer(torch.optim.Optimizer):
    """groups: as torch takes them, with named parameters. units: each parameter belongs to exactly one."""

    def __init__(self, groups: Iterable[dict[str, Any]], units: Iterable[Unit], lr: float, weight_decay: float = 0.0, seed: int = 0):
        super().__init__(list(groups), {"lr": lr, "weight_decay": weight_decay})
        self.units, self.seed = list(units), seed
        self._inside: tuple[float | None] | None = None  # max_norm, within in_backward
        counted = [id(p) for u in self.units for p in u.p.values()]
        if sorted(counted) != sorted(id(p) for g in self.param_groups for p in g["params"]):
            raise SpecError("every parameter of the groups belongs to exactly one unit")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if "units" in self.__dict__:  # torch's own __init__ comes here, too
            raise SpecError("no unit of this optimiser moves tensors that come later: make it anew, over all of them")
        super().add_param_group(param_group)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step for every unit that has a gradient. Parameters without one are left alone, as in torch."""
        return self._move(closure)

    @torch.no_grad()
    def _move(self, closure: Callable[[], Any] | None) -> Any:
        """`step`, without the hooks that torch puts around that of every class."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        where = self._where()
        for unit in self.units:
            if all(p.grad is None for p in unit.p.values()):
                if not unit.moved:
                    unit.rule.rest(lambda unit=unit: self._state(unit))  # type: ignore[misc]
            elif self._inside is None:
                self._step(unit, where)
            else:
                self._now(unit, *self._inside)
            unit.arrived, unit.moved = 0, False
        return loss

    def _state(self, unit: Unit) -> dict[str, dict[str, Any]]:
        return {role: self.state[p] for role, p in unit.p.items()}

    def _where(self) -> dict[int, dict[str, Any]]:
        return {id(p): g for g in self.param_groups for p in g["params"]}

    def _step(self, unit: Unit, where: dict[int, dict[str, Any]]) -> None:
        if all(p.grad is None for p in unit.p.values()):
            return
        lr = {role: float(where[id(p)]["lr"]) for role, p in unit.p.items()}
        decay = {role: float(where[id(p)]["weight_decay"]) for role, p in unit.p.items()}
        g: dict[str, Tensor] = {role: torch.zeros_like(p) if p.grad is None else p.grad for role, p in unit.p.items()}
        try:
            unit.rule.step(dict(unit.p), g, self._state(unit), Step(lr, decay, self.seed, unit.name))
        except torch.linalg.LinAlgError as error:
            if all(bool(t.isfinite().all()) for t in g.values()):
                raise
            raise SpecError(f"{unit.name}: its gradient is not finite; look for NaN in the loss, or lower the rate") from error

    @contextmanager
    def in_backward(self, micro_batches: int = 1, max_norm: float | None = None) -> Iterator[SubOptimizer]:
        """Within this block each unit steps inside the last backward pass of every `micro_batches`, and its gradient is
        freed at once: the gradients of the whole model never exist together.

        `step()` goes on being called after each group of passes: it moves what has not moved (a part of the model that
        saw fewer passes) and lets schedulers count. max_norm clips each unit's own gradient: the norm over all of them is
        not known while they come in. Several processes: the gradients are averaged here, so the model goes without DDP,
        and each process has to come to the same units in the same order. SpecError where something acts before a step (rules of an
        adapter, an outer optimiser): it would come too late.
        """
        if micro_batches < 1:
            raise SpecError(f"micro_batches counts the backward passes of one step: at least 1; found {micro_batches}")
        if self._optimizer_step_pre_hooks:
            raise SpecError("a rule or an outer optimiser acts before a step, which inside backward is over by then: use step() alone")
        handles = []
        for unit in self.units:
            trained = [p for p in unit.p.values() if p.requires_grad]
            unit.arrived = 0  # an earlier block may have broken off

            def arrive(_: Tensor, unit: Unit = unit, expected: int = micro_batches * len(trained)) -> None:
                unit.arrived += 1
                if unit.arrived == expected:
                    self._now(unit, max_norm)

            handles += [p.register_post_accumulate_grad_hook(arrive) for p in trained]
        self._inside = (max_norm,)
        try:
            yield self
        finally:
            self._inside = None
            for h in handles:
                h.remove()

    @torch.no_grad()
    def _now(self, unit: Unit, max_norm: float | None) -> None:
        params = list(unit.p.values())
        for p in params:
            p.grad = None if p.grad is None else mean_of_processes(p.grad)
        if max_norm is not None:
            nn.utils.clip_grad_norm_(params, max_norm)
        self._step(unit, self._where_cached())
        unit.moved = True
        for p in params:
            p.grad = None

    def _where_cached(self) -> dict[int, dict[str, Any]]:
        """The groups by parameter; made again when others have taken their place (as a state is loaded)."""
        if self.__dict__.get("_groups") is not self.param_groups:
            self._groups, self._map = self.param_groups, self._where()
        return self._map

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but moments, frames and counters keep the dtypes they were saved with, and names have to agree: torch
        goes by position."""
        names = [[n for g in groups for n in g.get("param_names", ())] for groups in (state_dict["param_groups"], self.param_groups)]
        for saved, here in zip(*names):
            if saved != here:
                raise StateMismatch(f"this optimiser state has '{saved}' where '{here}' is here: it belongs to another plan or model")
        super().load_state_dict(state_dict)
        numbers = [i for g in state_dict["param_groups"] for i in g["params"]]
        tensors = [p for g in self.param_groups for p in g["params"]]
        for i, p in zip(numbers, tensors, strict=True):
            if i in state_dict["state"]:
                self.state[p] = _copy(state_dict["state"][i], p.device)


def _copy(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {k: _copy(v, device) for k, v in value.items()}
    if not isinstance(value, Tensor):
        return value
    return value.detach().clone() if value.dim() == 0 else value.detach().to(device, copy=True)
