"""Models whose linear weights are kept as codes: what every adapter can be attached to as to any other model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .codecs import FORMATS, GGUF, NAMES
from .convert import site_delta
from .errors import NotMergeable, SpecError, need
from .sites import find
from .sites.find import matches
from .sites.foreign import provide


class _Product(torch.autograd.Function):
    """x W^ᵀ + b, with W^ decoded in the forward and once more in the backward: no dense copy is kept, codes get no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.dense().to(x.dtype))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g @ ctx.layer.dense().to(g.dtype), None


class QuantLinear(nn.Module):
    """A frozen linear layer whose weight is in a codec's parts (buffers); y = x decode(parts)ᵀ + b."""

    def __init__(self, codec: Any, parts: dict[str, Tensor], shape: tuple[int, int], bias: Tensor | None = None, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.codec, self.out_features, self.in_features = codec, *shape
        for name, t in parts.items():
            self.register_buffer(f"q_{name}", t)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach(), requires_grad=False))
        self.register_buffer("like", torch.empty(0, dtype=dtype, device=next(iter(parts.values())).device), persistent=False)

    @classmethod
    def of(cls, layer: nn.Linear, codec: Any, W: Tensor | None = None) -> QuantLinear:
        """W: what is encoded in the place of the layer's weight (the rest of a low-rank decomposition)."""
        W = layer.weight if W is None else W
        return cls(codec, codec.encode(W.detach()), (layer.out_features, layer.in_features), layer.bias, layer.weight.dtype)

    def parts(self) -> dict[str, Tensor]:
        return {k[2:]: t for k, t in self._buffers.items() if k.startswith("q_") and t is not None}

    def dense(self) -> Tensor:
        """W^ (m, n), float32."""
        found: Tensor = self.codec.decode(self.parts(), (self.out_features, self.in_features))
        return found

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Product.apply(x, self)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Moves go to all; a change of dtype leaves the parts alone: they are what they are."""
        before = {k: t for k, t in self._buffers.items() if k.startswith("q_")}
        super()._apply(fn, recurse)
        for k, t in before.items():
            now = self._buffers[k]
            if t is not None and now is not None and now.dtype != t.dtype:
                self._buffers[k] = t.to(now.device)
        return self

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, {self.codec}"


provide(
    lambda m: isinstance(m, QuantLinear), lambda m: (m.out_features, m.in_features), lambda m: m.dense().to(m.like.dtype)
)  # fmt: skip


@dataclass
class Quantised:
    """What was done: bytes of the weights before, after by the codecs' formula, after as measured; |W - W^|_F / |W|_F by site."""

    before: int
    stated: float
    after: int
    errors: dict[str, float] = field(default_factory=dict)
    codecs: dict[str, Any] = field(default_factory=dict)


@torch.no_grad()
def quantise(
    model: nn.Module, codec: Any = "nf4", *, targets: Any = "all-linear", exclude: Any = (), instead: Mapping[str, Tensor] | None = None
) -> Quantised:
    """Replace the weights of linear layers by codes, in place. codec: a name (nf4, nf3, nf2, nf8, int4, int8), a codec, or {pattern: codec}
    of which the first that fits a layer's name counts. instead: what is encoded at a site in the place of its weight (W minus a low-rank part,
    see deltaw.methods.init.loftq.alternated and deltaw.methods.lq.decompose). Tied weights and heads are left alone unless they are named.

    Adapters attach as ever: they see a frozen layer. Merging needs deltaw.requantise, since codes cannot hold a sum.
    """
    rules = codec if isinstance(codec, Mapping) else {".*": codec}
    out = Quantised(0, 0.0, 0)
    for site in find(model, targets, exclude):
        layer: Any = site.module
        if type(layer) is not nn.Linear:
            continue
        chosen = next((c for pattern, c in rules.items() if matches(site.name, pattern)), None)
        if chosen is None:
            continue
        chosen = named(chosen)
        new = QuantLinear.of(layer, chosen, None if instead is None or site.name not in instead else instead[site.name])
        parent, _, name = site.name.rpartition(".")
        W = layer.weight.detach().float()
        out.errors[site.name] = float((new.dense() - W).norm() / W.norm().clamp(min=1e-30))
        out.codecs[site.name] = chosen
        out.before += layer.weight.numel() * layer.weight.element_size()
        out.stated += chosen.bits(*W.shape) * W.numel() / 8
        out.after += sum(t.numel() * t.element_size() for t in new.parts().values())
        setattr(model.get_submodule(parent), name, new.train(layer.training))
    if not out.errors:
        raise SpecError("no dense linear layer among the targets to quantise")
    return out


def coded_bytes(model: nn.Module) -> int:
    """Bytes of all codes in a model."""
    return sum(t.numel() * t.element_size() for m in model.modules() if isinstance(m, QuantLinear) for t in m.parts().values())


def named(codec: Any) -> Any:
    if isinstance(codec, str):
        if codec not in NAMES:
            from .errors import nearest

            raise SpecError(f"no codec '{codec}'{nearest(codec, NAMES)} (known: {', '.join(NAMES)})")
        return NAMES[codec]
    return codec


@dataclass
class Requantised:
    """A copy of the model with the change in its codes. lost: by site |W'' - (W^ + dW)|_F / |dW|_F, what the codes could not hold of it."""

    model: nn.Module
    lost: dict[str, float]
    whole: float


@torch.no_grad()
def requantise(adapted: Any, codec: Any = None, most: float = 0.1) -> Requantised:
    """Merge an adapter into a quantised base, explicitly: W'' = decode(encode(W^ + dW)), by the layer's own codec or another one.

    Errors: NotMergeable where more than `most` of the change is lost in all: codes as coarse as those of the base lose much of a small change.
    Keep the adapter beside the base then, take a finer codec (nf8), or train with the structure sqft, whose merge is exact.
    """
    lost, off, size, made = {}, 0.0, 0.0, {}
    for a in adapted.assignments:
        layer = a.site.module
        if not isinstance(layer, QuantLinear):
            raise NotMergeable(f"{a.site.name} is a {type(layer).__name__}, not quantised by deltaw.quantise: adapted.merge() is for dense layers")
        change = site_delta(adapted, a).dense().float()
        want = layer.dense() + change
        chosen = layer.codec if codec is None else named(codec)
        if isinstance(chosen, GGUF):
            raise NotMergeable(f"{a.site.name}: GGUF blocks are not encoded here; give another codec, requantise(adapted, 'nf4')")
        parts = chosen.encode(want)
        error, norm = (float(t.double().square().sum()) for t in (chosen.decode(parts, tuple(want.shape)) - want, change))
        lost[a.site.name] = (error / norm) ** 0.5 if norm else 0.0
        off, size, made[a.site.name] = off + error, size + norm, (chosen, parts, layer)
    whole = (off / size) ** 0.5 if size else 0.0
    if whole > most:
        worst = max(lost, key=lambda k: lost[k])
        raise NotMergeable(
            f"{whole:.1%} of the change would be lost in the codes (most = {most:.1%}; worst at {worst}: {lost[worst]:.1%}). Keep the adapter beside the "
            "base, give a finer codec, or raise `most`"
        )
    adapted.detach()
    model = copy.deepcopy(adapted.model)
    for name, (chosen, parts, layer) in made.items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, QuantLinear(chosen, parts, (layer.out_features, layer.in_features), layer.bias, layer.like.dtype))
    return Requantised(model, lost, whole)


def keep_gguf(model: nn.Module, file: str | Path, *, exclude: Any = ()) -> Quantised:
    """Put the blocks of a GGUF file into the linear layers of the model that was read from it (deltaw.train.load_base or transformers'
    gguf_file=), in place: layers whose format is one of Q4_0, Q4_1, Q8_0, Q4_K; others stay dense. Rotary q and k of the llama family are
    stored with their rows in another order, which is undone in whole rows.
    Errors: SpecError where a block does not decode to the weight that the model has.
    """
    gguf = need("gguf", extra="train")
    tensors = {t.name: t for t in gguf.GGUFReader(str(file)).tensors}
    out = Quantised(0, 0.0, 0)
    heads = {"attn_q": getattr(model.config, "num_attention_heads", 0), "attn_k": getattr(model.config, "num_key_value_heads", 0)}
    for site in find(model, "all-linear", exclude):
        layer: Any = site.module
        found = next((t for name, t in tensors.items() if name == _gguf_name(site.name)), None)
        if type(layer) is not nn.Linear or found is None or found.tensor_type.name not in FORMATS:
            continue
        m, n = layer.weight.shape
        count, size = FORMATS[found.tensor_type.name]
        raw = torch.from_numpy(found.data.copy()).view(torch.uint8).reshape(m, n // count * size)
        codec = GGUF(found.tensor_type.name)
        word = _gguf_name(site.name).split(".")[2]
        for order in ([_rotary(m, heads[word])] if heads.get(word) else []) + [torch.arange(m)]:
            parts = {"raw": raw[order].flatten().to(layer.weight.device)}
            decoded = codec.decode(parts, (m, n))
            if bool((decoded.to(layer.weight.dtype) - layer.weight).abs().max() <= 1e-6 + 1e-2 * decoded.abs().max() * (layer.weight.dtype != torch.float32)):
                break
        else:
            raise SpecError(f"{site.name}: the blocks of {found.name} in {file} are not its weight")
        parent, _, last = site.name.rpartition(".")
        setattr(model.get_submodule(parent), last, QuantLinear(codec, parts, (m, n), layer.bias, layer.weight.dtype))
        out.errors[site.name], out.codecs[site.name] = 0.0, codec
        out.before += layer.weight.numel() * layer.weight.element_size()
        out.stated += codec.bits(m, n) * m * n / 8
        out.after += parts["raw"].numel()
    if not out.errors:
        raise SpecError(f"{file} has no linear layer of this model in {', '.join(FORMATS)}")
    return out


def _rotary(m: int, heads: int) -> Tensor:
    """Row order: llama.cpp keeps the two halves of a rotary pair side by side, transformers one half after the other."""
    return torch.arange(m).view(heads, m // heads // 2, 2).transpose(1, 2).reshape(-1)


_WORDS = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def _gguf_name(name: str) -> str:
    """model.layers.3.mlp.up_proj -> blk.3.ffn_up.weight; other names as they are."""
    parts = name.split(".")
    if "layers" in parts and (word := _WORDS.get(".".join(parts[parts.index("layers") + 2 :]))):
        return f"blk.{parts[parts.index('layers') + 1]}.{word}.weight"
    return name
