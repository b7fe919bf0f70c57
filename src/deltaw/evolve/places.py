"""What is evolved: the weights of a model's own layers, or the tensors of an attached adapter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap

from ..attach import Adapted
from ..entry import Entry
from ..errors import NotLinear, SpecError
from ..ops import Affine, delta, factors
from ..session import ATTRIBUTE
from ..sites import Site
from ..sites.find import Targets, find
from ..sites.module import ModuleSite
from ..spec import Tensors
from .members import Copies, Forward, Probed
from .noise import Noise, signed

KINDS = ("linear", "conv1d_hf", "embedding")


@dataclass
class Tuned:
    """One trained tensor: its parameter, the shape its probes have, and how they lie in the parameter."""

    parameter: nn.Parameter
    shape: tuple[int, ...]
    laid: Callable[[Tensor], Tensor] = field(default=lambda t: t)

    @property
    def matrix(self) -> bool:
        return len(self.shape) == 2


class Place:
    """One layer: its trained tensors by full name, and its forward for a block of members."""

    module: nn.Module
    tensors: dict[str, Tuned]

    def forward(self, noise: Noise, epoch: int, pairs: range) -> Callable[..., Any]:
        raise NotImplementedError

    def change(self, name: str, noise: Noise, epoch: int, pairs: range) -> Tensor:
        """± sigma E for every member, (members, *shape): of small tensors only."""
        t = self.tensors[name]
        if t.matrix:
            A, B = noise.factors(name, t.shape, epoch, pairs)  # type: ignore[arg-type]
            E = A @ B.mT
        else:
            E = noise.dense(name, t.shape, epoch, pairs)
        return signed(E.to(t.parameter.device) * noise.sigma)


class OwnWeight(Place):
    """W + sigma E_i, and b + sigma e_i where there is a bias and vectors are evolved."""

    def __init__(self, site: Site, vectors: bool):
        self.site, self.module, leaf = site, site.module, site.leaf()
        if site.kind not in KINDS or not site.parameter().is_floating_point():  # type: ignore[union-attr]
            raise SpecError(
                f"{site.name}: the weight of a {site.kind} cannot be evolved; linear layers and embeddings can, or an adapter"
            )
        self.weight, self.bias = f"{site.name}.weight", f"{site.name}.bias"
        weight: Any = site.parameter()
        self.tensors = {self.weight: Tuned(weight, leaf.op.shape, lambda t: site.written(t, None)["weight"])}
        bias: Any = leaf.bias
        if vectors and bias is not None:
            self.tensors[self.bias] = Tuned(bias, tuple(bias.shape))

    def forward(self, noise: Noise, epoch: int, pairs: range) -> Callable[..., Any]:
        A, B = noise.factors(self.weight, self.site.leaf().op.shape, epoch, pairs)
        device = self.tensors[self.weight].parameter.device
        b = self.change(self.bias, noise, epoch, pairs) if self.bias in self.tensors else None
        up, down = signed((noise.sigma * A).to(device)), B.mT.repeat_interleave(2, 0).to(device)
        return Forward(self.site, self.site.base.forward, Probed(self.site.leaf(), up, down, b))  # type: ignore[attr-defined]


class OwnNorm(Place):
    """The vectors of a normalisation."""

    def __init__(self, site: ModuleSite):
        self.module, self.site = site.module, site
        self.tensors = {f"{site.name}.{k}": Tuned(p, tuple(p.shape)) for k, p in site.originals().items()}  # type: ignore[arg-type]

    def forward(self, noise: Noise, epoch: int, pairs: range) -> Callable[..., Any]:
        cut = len(self.site.name) + 1
        found = {k: t.parameter + self.change(k, noise, epoch, pairs).to(t.parameter) for k, t in self.tensors.items()}
        return Copies(self.site.shim, {k[cut:]: v for k, v in found.items()})


class AdapterPlace(Place):
    """The tensors of an adapter at one site, whatever its method: their change has to have exact thin factors."""

    def __init__(self, site: Site, entry: Entry, call: Callable[..., Any], trained: set[str]):
        self.site, self.module, self.entry, self.call = site, site.module, entry, call
        if not site.pointwise or site.gathers or entry.signals:
            raise SpecError(
                f"{site.name}: {entry.method.key} on a {site.kind} cannot be evolved: it is no map of one row at a time with factors of its own (evolve linear layers and embeddings)"
            )
        self.names = {f"{site.name}.{k}": k for k, _ in entry.named() if f"{site.name}.{k}" in trained}
        self.tensors = {full: Tuned(entry.get(k), tuple(entry.get(k).shape)) for full, k in self.names.items()}  # type: ignore[arg-type]

    def forward(self, noise: Noise, epoch: int, pairs: range) -> Callable[..., Any]:
        moved = {
            k: self.tensors[full].parameter + self.change(full, noise, epoch, pairs) for full, k in self.names.items()
        }
        B, A = thin(self.site, self.entry, moved)
        return Forward(self.site, self.call, Probed(self.site.leaf(), B, A))


@torch.no_grad()
def thin(site: Site, entry: Entry, moved: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The exact factors B (count, m, k), A (count, k, n) of the change that an entry makes with each of these tensors
    (count, ...) in the place of its own; what an initialisation has moved into the base is in them."""
    base, fixed = site.leaf(), entry.tensors({})

    def one(own: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        p = Tensors(False, **{k: own.get(k, getattr(fixed, k)) for k in fixed.names()})
        L = entry.method.layer(Affine(entry.shifted(base.op), base.bias), p)
        pair = factors(delta(L.op, base.op)) if isinstance(L, Affine) and L.bias is base.bias else None
        if pair is None:
            raise NotLinear(
                f"{site.name}: the change of {entry.method.key} has no exact low-rank factors, so it cannot be evolved"
            )
        return pair

    B, A = vmap(one)(moved)
    return B, A


def own_places(model: nn.Module, targets: Targets, exclude: Targets, vectors: bool) -> list[Place]:
    """The layers of a model whose own weights are evolved, and its norms if `vectors`; a tied weight is refused."""
    if ATTRIBUTE in model.__dict__:
        raise SpecError("an adapter is attached to this model: evolve the adapter itself, or detach it")
    places: list[Place] = [OwnWeight(s, vectors) for s in find(model, targets, exclude)]
    if vectors:
        norms = find(model, "all-norms", sort="norm") if _has_norm(model) else []
        places += [OwnNorm(s) for s in norms if isinstance(s, ModuleSite)]
    uses: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        uses.setdefault(id(p), []).append(name)
    for place in places:
        for name, t in place.tensors.items():
            if len(names := uses[id(t.parameter)]) > 1:
                raise SpecError(
                    f"{name} is tied ({', '.join(names)}): a probe at one end would be a change at both; leave it out"
                )
    return places


def _has_norm(model: nn.Module) -> bool:
    from ..sites.find import is_norm

    return any(n and is_norm(m) for n, m in model.named_modules())


def adapter_places(adapted: Adapted) -> list[Place]:
    """The sites of the one adapter that is attached; tensors that sites share are refused."""
    trained, shared = adapted.trainable(), adapted._attached()
    if len(shared.adapters) > 1:
        raise SpecError(
            f"several adapters are attached ({', '.join(shared.adapters)}): detach all but the one to evolve"
        )
    places: list[Place] = []
    for a in adapted.assignments:
        entry = adapted.entries().get(a.site.name)
        if entry is None or a.site.name not in shared.places:
            raise SpecError(
                f"{a.site.name}: a {a.site.kind} that is tied or one of a stack of experts cannot be evolved"
            )
        places.append(AdapterPlace(a.site, entry, shared.places[a.site.name].base.forward, set(trained)))
    if left := set(trained) - {k for p in places for k in p.tensors}:
        raise SpecError(f"tensors shared by sites cannot be evolved: {', '.join(sorted(left)[:5])}")
    return places
