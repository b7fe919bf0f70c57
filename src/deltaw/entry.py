"""The tensors of one adapter at one site, as a module beside the base's own, and the map they make."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .errors import SpecError
from .ops import Affine, Map, Op, chain
from .spec import Declared, Method, Param, Signal, Start, Tensors

OFFSET = ("offset.B", "offset.A")  # a constant B0 A0 that an initialisation or a rule has moved into the base


def attribute(name: str) -> str:
    """Module attributes cannot hold dots."""
    return name.replace(".", "__")


class Computing(TorchDispatchMode):
    """Notices whether torch computes anything inside."""

    any = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.any = True
        return func(*args, **(kwargs or {}))


class Entry(nn.Module):
    """Registered beside the base parameters so that device moves, DDP, FSDP and optimisers see it.

    `own` are the names of this site's tensors; `shared` the ones that live once for the model, with this site's shape.
    """

    def __init__(self, method: Method, flip: bool = False):
        super().__init__()
        self.method, self.flip = method, flip
        self.owner = ""  # the name of its adapter
        self.own: list[str] = []
        self.free: dict[str, int] = {}  # those of which one axis may have another length in a file, and which
        self.shared: dict[str, tuple[str, tuple[int, ...]]] = {}
        self.signals: dict[str, str] = {}
        self.pool: tuple[Entry, ...] = ()  # the model-wide tensors; in a tuple, so as to be no submodule
        self.kept: tuple[list[Any], Map | None] | None = (
            None  # what the expression was made of, and it, if it can be kept
        )

    def put(self, name: str, tensor: Tensor, train: bool) -> None:
        self.own.append(name)
        self.register_parameter(attribute(name), nn.Parameter(tensor, requires_grad=train)) if (
            tensor.is_floating_point()
        ) else self.register_buffer(attribute(name), tensor)

    def get(self, name: str) -> Tensor:
        return getattr(self, attribute(name))  # type: ignore[no-any-return]

    def named(self) -> Iterator[tuple[str, Tensor]]:
        for name in self.own:
            yield name, self.get(name)

    def tensors(self, signals: dict[str, Tensor]) -> Tensors:
        p = Tensors(self.training)
        for name in self.own:
            if name not in OFFSET:
                setattr(p, name, self.get(name))
        for name, (key, shape) in self.shared.items():
            whole = self.pool[0].get(key)
            setattr(p, name, whole[tuple(slice(0, k) for k in shape)])
        for name, signal in self.signals.items():
            if signal not in signals:
                raise SpecError(f"{self.method.key} needs the signal '{signal}': call the whole model, not one layer")
            value: Any = signals[signal]
            setattr(
                p, name, value if isinstance(value, Tensor) else value(self.owner)
            )  # a memory of its own per adapter
        return p

    def shifted(self, W: Op) -> Op:
        """The base as the method sees it: with the constant an initialisation has moved into it."""
        return W + chain(self.get("offset.B"), self.get("offset.A")) if "offset.B" in self.own else W

    @property
    def moved(self) -> int:
        """The rank of that constant."""
        return int(self.get(OFFSET[0]).shape[1]) if OFFSET[0] in self.own else 0

    def constant(self, B: Tensor, A: Tensor) -> None:
        """The constant is B A from now on."""
        for name, tensor in zip(OFFSET, (B, A)):
            if name not in self.own:
                self.put(name, tensor, False)
            else:  # another parameter: the other end of a tied weight sees it too
                self.register_parameter(attribute(name), nn.Parameter(tensor, requires_grad=False))

    @torch.no_grad()
    def move(self, B: Tensor, A: Tensor) -> None:
        """Add B A to the constant: as further columns and rows, as long as that is smaller than the matrix itself.

        Beyond that the smaller factor becomes the identity and the other one the matrix: exact to one rounding, and what is
        added later is a single addmm, where a new SVD would cost m n min(m, n) every time."""
        if not self.moved:
            B, A = B.detach().clone(), A.detach().clone()
        else:
            B0, A0 = (self.get(name).detach() for name in OFFSET)
            B, A = B.detach().to(B0), A.detach().to(A0)
            tall, same = len(B) > A.shape[1], B0.shape[1] == min(len(B), A.shape[1])
            if same and torch.equal(A0 if tall else B0, torch.eye(B0.shape[1]).to(B0)):
                return self.constant(*((B0.addmm(B, A), A0) if tall else (B0, A0.addmm(B, A))))
            B, A = torch.cat([B0, B], 1), torch.cat([A0, A])
        m, n = len(B), A.shape[1]
        if B.shape[1] > min(m, n):
            one = torch.eye(min(m, n)).to(B)
            B, A = (B @ A, one) if m > n else (one, B @ A)
        self.constant(B, A)

    def layer(self, base: Affine, signals: dict[str, Tensor]) -> Map:
        """The map here, of a base. An expression that only refers to the tensors, and so stays true whatever their values
        become, is made once; one that needed any computing is made again in every forward."""
        if torch.compiler.is_compiling() or self.signals or torch._C._functorch.peek_interpreter_stack() is not None:
            return self._layer(base, signals)
        made_of = [self.training, self.method, base.op, base.bias, *self._parameters.values(), *self._buffers.values()]
        if (
            self.kept is None
            or len(self.kept[0]) != len(made_of)
            or any(a is not b for a, b in zip(self.kept[0], made_of))
        ):
            with Computing() as seen:
                L = self._layer(base, signals)
            if isinstance(L, Affine):
                L.memo = None if seen.any else {}
            self.kept = (made_of, None if seen.any else L)
            return L
        return self._layer(base, signals) if self.kept[1] is None else self.kept[1]

    def __getstate__(self) -> dict[str, Any]:  # copies and pickles make their own
        return {**self.__dict__, "kept": None}

    def _layer(self, base: Affine, signals: dict[str, Tensor]) -> Map:
        W = self.shifted(base.op.T if self.flip else base.op)
        L = self.method.layer(Affine(W, None if self.flip else base.bias), self.tensors(signals))
        if self.flip:  # the other end of a tied weight: same tensors, transposed
            if not isinstance(L, Affine):
                raise SpecError(f"{self.method.key} is not linear and cannot act on both ends of a tied weight")
            L = Affine(L.op.T, base.bias)
        return L

    def extra_repr(self) -> str:
        return repr(self.method)


def width_of(W: Op) -> torch.dtype:
    """Adapters are stored in float32 at least: these are the masters, cast to the activations' dtype in use."""
    dtype = W.like.dtype
    return torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else torch.float32


def make(param: Param, shape: tuple[int, ...], start: Start, name: str, empty: bool) -> Tensor:
    like = start.W.like
    dtype = param.dtype or width_of(start.W)
    if empty or like.device.type == "meta":
        return torch.empty(shape, dtype=dtype, device=like.device)
    value = param.init(start.at(name, param.seed), shape)
    if tuple(value.shape) != tuple(shape):
        raise SpecError(f"{start.name}: the start of '{name}' has shape {tuple(value.shape)}; declared: {tuple(shape)}")
    return value.detach().to(device=like.device, dtype=dtype).clone().contiguous()


def fill(
    entry: Entry, declared: Declared, start: Start, init: Any, empty: bool, stats: dict[str, Tensor] | None = None
) -> None:
    """Make this site's own tensors: first the plain starts, then the init axis, then those that look at the others and that
    the init does not make itself. stats: what has been measured here, for an init that needs it."""
    fills = getattr(init, "fills", ())
    late: list[tuple[str, Param]] = []
    entry.free = {name: p.free for name, p in declared.items() if isinstance(p, Param) and p.free is not None}
    for name, param in declared.items():
        if isinstance(param, Signal):
            entry.signals[name] = param.name
        elif param.scope == "site" and getattr(param.init, "last", False) and name not in fills:
            late.append((name, param))
        elif param.scope == "site":
            entry.put(name, make(param, param.shape, start, name, empty or name in fills), param.train)
    start.p = entry.tensors(dict.fromkeys(entry.signals.values(), torch.empty(0)))
    start.own = entry.own
    if init is not None:
        with torch.no_grad():
            moved = _moved(entry, init, start, empty, stats or {})
        for name, tensor in zip(OFFSET, moved or ()):
            entry.put(name, tensor, False)
        start.W = entry.shifted(start.W)
    for name, param in late:
        with torch.no_grad():
            tensor = make(param, param.shape, start, name, empty)
        entry.put(name, tensor, param.train)
        setattr(start.p, name, entry.get(name))


def _moved(
    entry: Entry, init: Any, start: Start, empty: bool, stats: dict[str, Tensor]
) -> tuple[Tensor, Tensor] | None:
    like = start.W.like
    if empty or like.device.type == "meta":
        if not init.shifts:
            return None
        B, A = start.p.B, start.p.A
        return torch.empty_like(B), torch.empty_like(A)
    offset = init.fill(start, start.p, stats)
    if offset is None:
        return None
    from .ops import factors

    pair = factors(offset)
    assert pair is not None, "an init's offset must have exact factors"
    return pair[0].detach().clone().contiguous(), pair[1].detach().clone().contiguous()
