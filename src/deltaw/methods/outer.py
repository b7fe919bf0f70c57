"""An outer optimiser around an inner one: DiLoCo's, for workers that talk to each other once in many steps."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import SpecError, StateMismatch
from ..sites.watch import place, several
from ..spec import from_config
from .update import NOTHING, UPDATES, About

STATE = "outer"  # the key in the optimiser's state dict


class Processes:
    """Means over the processes of torch.distributed, formed while the caller goes on; over one process without it."""

    now = staticmethod(time.perf_counter)

    @property
    def size(self) -> int:
        return place()[1]

    def start(self, t: Tensor) -> dict[str, Any]:
        sent: dict[str, Any] = {"sum": t.clone(), "began": self.now()}
        if several():
            sent["work"] = work = torch.distributed.all_reduce(sent["sum"], async_op=True)

            def end(_: Any) -> None:
                sent["ended"] = self.now()

            work.get_future().then(end)
        return sent

    def finish(self, sent: dict[str, Any]) -> Tensor:
        if "work" in sent:
            sent["work"].wait()
        mean: Tensor = sent["sum"] / self.size
        return mean


class Outer:
    """Every `every` steps of the inner optimiser, theta_t -> theta_k: delta_k = theta_t - theta_k, d from the delta_k of all workers,
    u <- momentum u + d, theta_{t+1} = theta_t - lr (d + momentum u) (Nesterov).

    d = mean_k delta_k, which all wait for; `eager`: d = delta_k / K + (mean - delta_k / K of the phase before), whose sum was on its
    way meanwhile (0 in the first phase). phases, waited, took: phases so far, seconds spent waiting, seconds that sums took.
    Memory: theta_t and u, and two more copies if eager, in float32 at least; saved with the inner state, by name.
    """

    def __init__(self, every: int, lr: float, momentum: float, eager: bool, wire: Any = None):
        if every < 1:
            raise SpecError(f"a phase has at least one step; found every = {every}")
        self.every, self.lr, self.momentum, self.eager, self.wire = every, lr, momentum, eager, wire or Processes()
        self.step, self.s = 0, dict[str, Tensor]()
        self.sent: Any = None  # the sum that is on its way
        self.phases, self.waited, self.took = 0, 0.0, 0.0

    def install(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        optimizer.register_step_pre_hook(self.before)
        optimizer.register_step_post_hook(self.after)
        optimizer.register_state_dict_post_hook(self.save)
        optimizer.register_load_state_dict_pre_hook(self.load)
        optimizer.outer = self  # type: ignore[attr-defined]
        return optimizer

    @torch.no_grad()
    def before(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if "theta" not in self.s:
            self.s["theta"] = flat(parameters(optimizer).values())

    @torch.no_grad()
    def after(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self.step += 1
        if self.step % self.every:
            return
        params = list(parameters(optimizer).values())
        pieces = torch.split(self.s["theta"], [p.numel() for p in params])
        delta = flat([old.view_as(p).to(p).to(old.dtype) - p for p, old in zip(params, pieces)])
        d = self.mixed(delta)
        u = self.s["u"] = self.momentum * self.s.get("u", 0.0) + d
        self.s["theta"].sub_(d + self.momentum * u, alpha=self.lr)
        for p, new in zip(params, pieces):
            p.copy_(new.view_as(p))
        self.phases += 1

    def mixed(self, delta: Tensor) -> Tensor:
        if not self.eager:
            self.sent = self.wire.start(delta)
            self.arrive()
            return self.s.pop("mean")
        self.arrive()
        d = delta / self.wire.size
        if "own" in self.s:
            d = d + self.s.pop("mean") - self.s["own"] / self.wire.size
        self.s["own"], self.sent = delta, self.wire.start(delta)
        return d

    def arrive(self) -> None:
        """Wait for the sum that is on its way, if there is one."""
        if self.sent is not None:
            began = self.wire.now()
            self.s["mean"] = self.wire.finish(self.sent)
            self.waited += self.wire.now() - began
            self.took += self.sent.get("ended", self.wire.now()) - self.sent["began"]
            self.sent = None

    def save(self, optimizer: Any, state: dict[str, Any]) -> None:
        self.arrive()
        params = parameters(optimizer)
        sizes = [p.numel() for p in params.values()]
        split = {
            word: dict(zip(params, (piece.clone() for piece in torch.split(t, sizes)))) for word, t in self.s.items()
        }
        state[STATE] = {"step": torch.tensor(self.step), **split}

    def load(self, optimizer: Any, state: dict[str, Any]) -> None:
        saved, params = dict(state.pop(STATE, {})), parameters(optimizer)
        if "step" not in saved or any(v.keys() != params.keys() for k, v in saved.items() if k != "step"):
            raise StateMismatch(
                "this optimiser state has no outer optimiser's of the same parameters: it belongs to another run"
            )
        self.step, self.sent = int(saved.pop("step")), None
        where = next(iter(params.values())).device
        self.s = {
            word: torch.cat([by_name[k].reshape(-1).to(where) for k in params]) for word, by_name in saved.items()
        }


class PhasedUpdate:
    """What update rules with an outer optimiser share: the fields of `Outer`, whether they are `eager`, and any rule as `inner`."""

    eager: ClassVar[bool] = False
    inner: object
    every: int
    outer_lr: float
    momentum: float

    def optimizer(
        self, named: Mapping[str, nn.Parameter], lr: float, about: About = NOTHING, wire: Any = None, **kw: Any
    ) -> torch.optim.Optimizer:
        """wire: what means travel by, `Processes` by default."""
        made = from_config(self.inner, UPDATES).optimizer(named, lr, about=about, **kw)
        return Outer(self.every, self.outer_lr, self.momentum, self.eager, wire).install(made)


def parameters(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """By name, in the order of the groups."""
    return {k: p for g in optimizer.param_groups for k, p in zip(g["param_names"], g["params"])}


def flat(tensors: Any) -> Tensor:
    """One vector of all their numbers, in float32 at least."""
    wide = [t.detach().to(torch.promote_types(t.dtype, torch.float32)).reshape(-1) for t in tensors]
    return torch.cat(wide)
