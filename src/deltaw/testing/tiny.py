"""Tiny models that the laws run on. All weights and inputs come from the counter-based generator: the same everywhere."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..ops import random as rng
from ..sites import provide

WIDTH = 16  # of every input and of every hidden state
WIDE = 24  # the other size: sites are 24 x 16 and 16 x 16


def values(*shape: int, name: str, std: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers that depend on the name only."""
    return rng.normal(shape, rng.key("tiny", name), std).to(dtype)


def settle(model: nn.Module, dtype: torch.dtype) -> Any:
    """Overwrite every parameter by name, at a scale that keeps activations near 1, and switch to evaluation mode."""
    model = model.to(dtype).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(values(*p.shape, name=name, std=p.shape[-1] ** -0.5 if p.dim() > 1 else 0.1, dtype=dtype))
    return model


class Output:
    """A plain class: Dynamo cannot make a SimpleNamespace."""

    def __init__(self, logits: Tensor, hidden_states: tuple[Tensor, ...]):
        self.logits, self.hidden_states = logits, hidden_states


def answer(y: Tensor, hidden: Tensor, kw: dict[str, Any]) -> Any:
    """What a transformers model gives when asked for hidden states; otherwise the tensor itself."""
    if not kw.get("output_hidden_states"):
        return y
    fitted = nn.functional.pad(hidden, (0, WIDTH - hidden.shape[-1]))  # cut or padded: always of the same size
    return Output(y, (fitted,))


class TinyNorm(nn.LayerNorm):
    """A layer norm that tells its sizes like a linear layer."""

    in_features = out_features = property(lambda self: self.normalized_shape[0])


class Block(nn.Module):
    """x + tanh(sq x) + up(x) folded back to the width: both site shapes, smooth, every output used. norm: of the input."""

    def __init__(self, width: int = WIDTH, wide: int = WIDE, norm: bool = False):
        super().__init__()
        self.sq, self.up = nn.Linear(width, width), nn.Linear(width, wide, bias=False)
        self.norm = TinyNorm(width) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        u, d = self.up(x), x.shape[-1]
        return x + torch.tanh(self.sq(x)) * torch.tanh(u[..., :d]) + 0.5 * u[..., -d:]


class Counted(nn.Module):
    """Its input are features; its tokens are numbered, for adapters that wait for a sequence of tokens."""

    def token_ids(self, x: Tensor, **kw: Any) -> Tensor:
        lead = x.shape[:-1] if x.is_floating_point() else x.shape
        return torch.arange(lead[-1], device=x.device).expand(lead)


class Tiny(Counted):
    """Two blocks; `recompute` turns gradient checkpointing on ("reentrant" or "plain")."""

    def __init__(self, width: int = WIDTH, wide: int = WIDE, norm: bool = False):
        super().__init__()
        self.blocks = nn.ModuleList([Block(width, wide, norm) for _ in range(2)])
        self.config, self.recompute = SimpleNamespace(hidden_size=width), ""

    def forward(self, x: Tensor, **kw: Any) -> Any:
        for block in self.blocks:
            if self.recompute:
                x = checkpoint(block, x, use_reentrant=self.recompute == "reentrant")
            else:
                x = block(x)
        return answer(x, x, kw)


class One(Counted):
    """A single linear layer `blocks.0`, m x n, or a norm of n: the model's output is the site's output."""

    def __init__(self, m: int = WIDE, n: int = WIDTH, bias: bool = True, norm: bool = False):
        super().__init__()
        self.blocks = nn.ModuleList([TinyNorm(n, bias=bias) if norm else nn.Linear(n, m, bias=bias)])
        self.config = SimpleNamespace(hidden_size=m)

    def forward(self, x: Tensor, **kw: Any) -> Any:
        return answer(self.blocks[0](x), x, kw)


class Lookup(nn.Module):
    """A single embedding `blocks.0`: n rows of size m, as a map m x n."""

    def __init__(self, m: int = WIDE, n: int = WIDTH):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Embedding(n, m)])
        self.config = SimpleNamespace(hidden_size=m)

    def forward(self, ids: Tensor, **kw: Any) -> Any:
        y = self.blocks[0](ids)
        return answer(y, y, kw)


class Conv1D(nn.Module):
    """transformers' Conv1D: a linear layer whose weight is stored transposed."""

    def __init__(self, m: int, n: int):
        super().__init__()
        self.nf, self.weight, self.bias = m, nn.Parameter(torch.empty(n, m)), nn.Parameter(torch.empty(m))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Experts(nn.Module):
    """A stack of expert weights (2, m, n), each applied to its half of the rows."""

    def __init__(self, m: int, n: int):
        super().__init__()
        self.stack = nn.Parameter(torch.empty(2, m, n))

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[0] // 2
        return torch.cat([x[:half] @ self.stack[0].mT, x[half:] @ self.stack[1].mT])


class Tied(nn.Module):
    """An embedding and an output head on one parameter."""

    def __init__(self, m: int = WIDE, n: int = WIDTH):
        super().__init__()
        self.table, self.head = nn.Embedding(n, m), nn.Linear(m, n, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor, **kw: Any) -> Any:
        h = torch.tanh(self.table(ids))
        return answer(self.head(h), h, kw)


class Around(Counted):
    """One layer of any kind as `blocks.0`; the tokens go to the last axis for a convolution."""

    def __init__(self, layer: nn.Module, channels: int = 0):
        super().__init__()
        self.blocks, self.channels = nn.ModuleList([layer]), channels

    def forward(self, x: Tensor, **kw: Any) -> Any:
        y = x
        if self.channels:
            y = self.blocks[0](x[..., : self.channels].mT).mT
        else:
            y = self.blocks[0](x)
        return answer(y, x, kw)


def places() -> dict[str, tuple[nn.Module, Any]]:
    """A model for every kind of weight, each with a map of 24 x 16 in it, and the targets that name it."""
    one = ["blocks.0"]
    return {
        "linear": (One(), one),
        "transposed linear": (Around(Conv1D(WIDE, WIDTH)), one),
        "convolution": (Around(nn.Conv1d(WIDTH // 2, WIDE, 2, padding=1), WIDTH // 2), one),
        "grouped convolution": (Around(nn.Conv1d(WIDTH, WIDE, 2, groups=2), WIDTH), one),
        "embedding": (Lookup(), one),
        "tied embedding and head": (Tied(), ["table", "head"]),
        "experts": (Around(Experts(WIDE, WIDTH)), ["blocks.0.stack"]),
    }


class Codes(nn.Module):
    """A foreign layer: rounded codes and a scale per row. Its kernel never shows a dense weight; `decode` does."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        w = linear.weight.detach()
        scale = w.abs().amax(1, keepdim=True) / 127
        self.register_buffer("codes", (w / scale).round().to(torch.int8))
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = linear.bias
        self.out_features, self.in_features = w.shape

    def decode(self) -> Tensor:
        return self.codes.to(self.scale.dtype) * self.scale  # type: ignore[operator,no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.linear(x, self.codes.to(x.dtype)) * self.scale.squeeze(1).to(x.dtype)  # type: ignore[operator]
        return y if self.bias is None else y + self.bias


provide(lambda m: isinstance(m, Codes), lambda m: (m.out_features, m.in_features), Codes.decode)


def coded(model: nn.Module) -> nn.Module:
    """The model with every linear layer replaced by `Codes`."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            path, _, word = name.rpartition(".")
            setattr(model.get_submodule(path), word, Codes(module))
    return model


class Attention(nn.Module):
    """Causal attention, two query heads on one head of keys and values, called as those of transformers are."""

    def __init__(self, width: int, size: int):
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(width, 2 * size), nn.Linear(width, size)
        self.v_proj, self.o_proj, self.head_dim = nn.Linear(width, size), nn.Linear(2 * size, width), size

    def forward(self, hidden_states: Tensor, mask: Any = None, cache: Any = None, layer: int = 0) -> Tensor:
        few = hidden_states.dim() == 2
        x = hidden_states[None] if few else hidden_states
        q = self.q_proj(x).unflatten(-1, (2, self.head_dim)).transpose(1, 2)
        k, v = self.k_proj(x)[:, None], self.v_proj(x)[:, None]
        if cache is not None:
            k, v = cache.update(k, v, layer)
        scores = q @ k.mT * self.head_dim**-0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, -1e4)
        y: Tensor = self.o_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return y[0] if few else y


class Attending(nn.Module):
    """A block: attention, and a layer `sq`; smooth."""

    def __init__(self, width: int, size: int):
        super().__init__()
        self.attn, self.sq = Attention(width, size), nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor, cache: Any, layer: int) -> Tensor:
        x = x + self.attn(x, mask, cache, layer)
        return x + torch.tanh(self.sq(x))


class Body(nn.Module):
    """The backbone of `Reader`, called as those of transformers are; positions are added as sines."""

    def __init__(self, width: int, layers: int, size: int):
        super().__init__()
        self.table = nn.Embedding(12, width)
        self.blocks = nn.ModuleList([Attending(width, size) for _ in range(layers)])
        self.recompute = ""

    @property
    def gradient_checkpointing(self) -> bool:
        return bool(self.recompute)

    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None, past_key_values: Any = None,
        inputs_embeds: Any = None, use_cache: bool = False,
    ) -> Tensor:  # fmt: skip
        x = self.table(input_ids) if inputs_embeds is None else inputs_embeds
        seen, tokens = 0 if past_key_values is None else past_key_values.get_seq_length(), x.shape[1]
        if position_ids is None:
            position_ids = (torch.arange(tokens, device=x.device) + seen)[None]
        turns = torch.arange(1, x.shape[-1] + 1, device=x.device, dtype=x.dtype) / 3
        x = x + 0.3 * torch.sin(position_ids[..., None].to(x.dtype) * turns)
        at = torch.arange(tokens, device=x.device)[:, None] + seen
        mask = (torch.arange(seen + tokens, device=x.device) <= at)[None, None]
        if attention_mask is not None:
            mask = mask & attention_mask[:, None, None].bool()
        for i, block in enumerate(self.blocks):
            if self.recompute and self.training:
                x = checkpoint(block, x, mask, past_key_values, i, use_reentrant=self.recompute == "reentrant")
            else:
                x = block(x, mask, past_key_values, i)
        return x


class Held:
    """A cache with fixed keys and values in front, (layers, 2, heads, places, size), that keeps nothing."""

    def __init__(self, kv: Tensor):
        self.kv = kv

    def get_seq_length(self) -> int:
        return self.kv.shape[3]

    def update(self, k: Tensor, v: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        front = self.kv[layer][:, None].expand(-1, len(k), -1, -1, -1)
        return torch.cat([front[0].to(k), k], 2), torch.cat([front[1].to(v), v], 2)


class Reader(Counted):
    """A tiny language model without a head: features in, hidden states out; for what stands in front of a text."""

    def __init__(self, width: int = WIDTH, layers: int = 2, size: int = 4):
        super().__init__()
        self.body = Body(width, layers, size)
        self.config = SimpleNamespace(
            hidden_size=width, num_attention_heads=2, num_key_value_heads=1, head_dim=size, num_hidden_layers=layers
        )

    @property
    def blocks(self) -> nn.ModuleList:
        return self.body.blocks

    @property
    def recompute(self) -> str:
        return self.body.recompute

    @recompute.setter
    def recompute(self, way: str) -> None:
        self.body.recompute = way

    def forward(self, x: Tensor, **kw: Any) -> Any:
        few = x.dim() == 2 and x.is_floating_point()
        y = self.body(inputs_embeds=x[None] if few else x) if x.is_floating_point() else self.body(x)
        y = y[0] if few else y
        return answer(y, y, kw)

    def told(self, x: Tensor, tokens: Tensor | None = None, kv: Tensor | None = None) -> Tensor:
        """What it reads behind soft tokens (v, d) and keys and values (u, m), done by hand and without an adapter."""
        few, h = x.dim() == 2, x[None] if x.dim() == 2 else x
        cache = None
        if kv is not None:
            layers, size = len(self.blocks), self.config.head_dim
            cache = Held(kv.reshape(len(kv), layers, 2, 1, size).permute(1, 2, 3, 0, 4))
        v = 0 if tokens is None else tokens.shape[0]
        if tokens is not None:
            h = torch.cat([tokens.to(h).expand(len(h), *tokens.shape), h], 1)
        y = Body.forward(self.body, inputs_embeds=h, past_key_values=cache)[:, v:]
        return y[0] if few else y
