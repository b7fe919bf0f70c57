"""A whole block, whose input an adapter may change and whose output it may look at, with a memory from block to block."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import NotLinear, SpecError
from ..ops import Map
from .prompt import cached
from .stream import StreamSite

CACHES = ("past_key_values", "past_key_value", "layer_past")


class Rider(Map):
    """What an adapter does around a block, with a state s that rides along from block to block.

    seed(h, net): the state in front of the first block, net(h, tensors) being a copy of that block with other parameters;
    enter(h, s): what is added to the block's input; leave(y, s): the state behind it. `ride` is one pass's own memory.
    """

    ride: dict[Any, Any]
    trained: bool = True

    def seed(self, h: Tensor, net: Callable[[Tensor, dict[str, Tensor]], Tensor], norm: nn.Module | None) -> Tensor:
        raise NotImplementedError

    def enter(self, h: Tensor, s: Tensor) -> Tensor:
        raise NotImplementedError

    def leave(self, y: Tensor, s: Tensor) -> Tensor:
        raise NotImplementedError

    def __call__(self, x: Tensor) -> Tensor:
        raise NotLinear("what happens around a whole block is no map of a vector")


class Riders(Map):
    """Several: (rider, its weight, the rows it is for or None) each."""

    def __init__(self, parts: list[tuple[Rider, float | Tensor, Tensor | None]]):
        self.parts = parts


class BlockSite(StreamSite):
    kind = "block"
    pointwise = False
    gathers = True

    def __init__(self, name: str, module: nn.Module, width: int, all_blocks: dict[str, nn.Module], norm: nn.Module | None):
        super().__init__(name, module, width)
        names = list(all_blocks)
        self.order = names.index(name) if name in names else -1
        self.first, self.last = self.order == 0, self.order == len(names) - 1
        self.net = hollow(module) if self.first else None
        self.norm = hollow(norm) if self.first and norm is not None else None

    def joined(self, maps: list[Map], weights: list[float | Tensor]) -> Riders:
        """What they add to the input adds up; each has a state of its own."""
        return Riders([(rider(L), w, None) for L, w in zip(maps, weights)])

    def by_row(self, maps: dict[int, Map], which: Tensor) -> Riders:
        return Riders([(rider(L), 1.0, which == k) for k, L in maps.items()])

    def run(self, L: Map, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        assert isinstance(L, Riders)
        h = args[0] if args else kwargs["hidden_states"]
        y, found = h, []
        for part, weight, rows in L.parts:
            s = self._state(part, h, args[1:], kwargs)
            found.append((part, s))
            move = weight * part.enter(h, s).to(h.dtype)
            y = y + (move if rows is None else torch.where(rows.reshape(-1, *[1] * (h.dim() - 1)), move, 0.0))
        out = call(y, *args[1:], **kwargs) if args else call(**{**kwargs, "hidden_states": y})
        if not self.last:
            left = out if isinstance(out, Tensor) else out[0]
            for part, s in found:
                part.ride["now"] = part.leave(left, s)
        return out

    def _state(self, part: Rider, h: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The state in front of this block. A block that is run again, for its gradients, finds the one it had."""
        ride = part.ride
        if self.first:
            return part.seed(h, self._mirror(args, kwargs), self.norm)
        if "now" not in ride:
            raise SpecError(f"{self.name}: the state starts at the first block, which has to be among the targets")
        if not torch.is_grad_enabled():
            return ride["now"]  # type: ignore[no-any-return]
        s: Tensor = ride.setdefault(self.order, ride["now"])
        if not s.requires_grad and part.trained and not torch.compiler.is_compiling():
            raise SpecError(
                f"{self.name}: reentrant gradient checkpoints around whole blocks cut the way of the gradient from block to "
                "block; use use_reentrant=False"
            )
        return s

    def _mirror(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[Tensor, dict[str, Tensor]], Tensor]:
        if any(cached(kwargs.get(word)) for word in CACHES):
            raise SpecError(f"{self.name}: this adapter runs a network of its own beside the model, without a cache; call the "
                            "model with use_cache=False")  # fmt: skip
        plain = {k: v for k, v in kwargs.items() if k not in (*CACHES, "hidden_states")}
        plain |= {"use_cache": False} if "use_cache" in plain else {}
        assert self.net is not None
        net, buffers = self.net.train(self.module.training), dict(self.module.named_buffers())

        def run(h: Tensor, tensors: dict[str, Tensor]) -> Tensor:
            out = functional_call(net, {**buffers, **tensors}, (h, *args), plain)
            return out if isinstance(out, Tensor) else out[0]

        return run


def rider(L: Map) -> Rider:
    if not isinstance(L, Rider):
        raise NotLinear(f"a whole block takes what rides along from block to block; found a {type(L).__name__}")
    return L


def hollow(module: nn.Module) -> nn.Module:
    """A copy of the structure that shares the tensors, without anything attached to it."""
    memo: dict[int, Any] = {id(t): t for t in [*module.parameters(), *module.buffers()]}
    for m in module.modules():
        memo |= {id(t): t for t in (m.__dict__.get("forward"), m._modules.get("deltaw")) if t is not None}
    new = copy.deepcopy(module, memo)
    for m in new.modules():
        m._modules.pop("deltaw", None)
        if hasattr(m.__dict__.get("forward"), "set_forward"):
            del m.__dict__["forward"]
        if hasattr(m, "gradient_checkpointing"):
            m.gradient_checkpointing = False  # type: ignore[assignment]
    return new


def norm_behind(model: nn.Module, first_block: str) -> nn.Module | None:
    """The norm behind the last block: of the modules beside the list of blocks, the last that is one."""
    path = first_block.rpartition(".")[0].rpartition(".")[0]
    beside = model.get_submodule(path).named_children() if path else model.named_children()
    return next((m for _, m in reversed(list(beside)) if "norm" in type(m).__name__.lower()), None)
