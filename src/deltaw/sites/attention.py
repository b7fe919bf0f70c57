"""An attention layer with a second set of places to attend to, whose answer is added to its output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import NotLinear, NotMergeable, SpecError, TargetError
from ..ops import Affine, Eye, Map
from .base import Site

PARTS = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass
class Seen(Map):
    """Places P (places, d), read through the layer's own keys and values, and a gate g (1,). weight: of the adapter; rows:
    of the batch, if not all."""

    P: Tensor
    g: Tensor
    weight: float | Tensor = 1.0
    rows: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        raise NotLinear("what an attention layer sees besides is no map of a vector")


class Several(Map):
    def __init__(self, parts: list[Seen]):
        self.parts = parts


def seen(L: Map) -> Seen:
    if not isinstance(L, Seen):
        raise NotLinear(f"an attention layer takes places to attend to; found a {type(L).__name__}")
    return L


def is_attention(module: nn.Module) -> bool:
    return all(isinstance(getattr(module, word, None), nn.Module) for word in PARTS)


class AttentionSite(Site):
    """d x d: from the layer's hidden states to its output."""

    kind = "attention"
    pointwise = False
    gathers = True

    def __init__(self, name: str, module: Any):
        super().__init__(name, module)
        if not is_attention(module):
            raise TargetError(f"'{name}' is a {type(module).__name__}; an attention layer with {', '.join(PARTS)} is needed")
        if getattr(module, "q_norm", None) is not None or not isinstance(getattr(module, "head_dim", None), int):
            raise TargetError(f"'{name}': attention with norms of its queries, or heads without one size, is not supported")
        self.size = int(module.head_dim)
        self.width = int(module.q_proj.in_features)

    @property
    def shape(self) -> tuple[int, int]:
        return self.width, self.width

    def leaf(self) -> Affine:
        return Affine(Eye(self.width, next(self.module.parameters())))

    def merged(self, L: Map) -> dict[str, Tensor]:
        raise NotMergeable(f"{self.name}: what is attended to besides depends on the input, so no weight equals it")

    def joined(self, maps: list[Map], weights: list[float | Tensor]) -> Several:
        """The answers of several live adapters add up."""
        return Several([replace(seen(L), weight=w) for L, w in zip(maps, weights)])

    def by_row(self, maps: dict[int, Map], which: Tensor) -> Several:
        return Several([replace(seen(L), rows=(which == k).nonzero().squeeze(1)) for k, L in maps.items()])

    def run(self, L: Map, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        assert isinstance(L, Several)
        out = call(*args, **kwargs)
        x, turn = args[0] if args else kwargs["hidden_states"], kwargs.get("position_embeddings")
        y = out if isinstance(out, Tensor) else out[0]
        for part in L.parts:
            at = part.rows
            here = x if at is None else x[at]
            turned = turn if turn is None or at is None or turn[0].shape[0] == 1 else tuple(t[at] for t in turn)
            more = part.weight * self.answer(part, here, turned).to(y.dtype)
            y = y + more if at is None else y.index_add(0, at, more)
        return y if isinstance(out, Tensor) else (y, *out[1:])

    def answer(self, part: Seen, x: Tensor, turn: Any) -> Tensor:
        """o(g softmax(q K_Pᵀ / sqrt(size)) V_P), q behind the rotation, keys not rotated, a softmax of its own."""
        layer: Any = self.module
        P = part.P.to(x.dtype)
        q = layer.q_proj(x).unflatten(-1, (-1, self.size)).transpose(-3, -2)  # (..., heads, tokens, size)
        k, v = (f(P).unflatten(-1, (-1, self.size)).transpose(0, 1) for f in (layer.k_proj, layer.v_proj))
        if turn is not None:
            cos, sin = (t.unsqueeze(-3).to(q.dtype) for t in turn)
            if cos.shape[-1] != self.size:
                raise SpecError(f"{self.name}: a rotation of a part of each head is not supported")
            half = self.size // 2
            q = q * cos + torch.cat([-q[..., half:], q[..., :half]], -1) * sin
        times = q.shape[-3] // k.shape[0]
        k, v = k.repeat_interleave(times, 0), v.repeat_interleave(times, 0)
        score = torch.softmax(q @ k.mT * self.size**-0.5, -1, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype)
        y = (part.g.to(q.dtype) * score) @ v
        answer: Tensor = layer.o_proj(y.transpose(-3, -2).flatten(-2))
        bias = getattr(layer.o_proj, "bias", None)  # it has been added once, by the layer itself
        return answer if bias is None else answer - bias.to(answer.dtype)
