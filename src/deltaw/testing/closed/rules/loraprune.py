"""LoRAPrune's importance and masks by hand, on blocks with the names of llama's; a resumed run masks the same."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from .... import attach
from ....plan import Plan
from ....spec import METHODS
from ...laws.base import close, must, same
from ...tiny import values

FORM = "it prunes the attention heads and neurons of llama-like layers"
D, HEADS, SIZE, F, LAYERS, RATIO, EVERY, STEPS = 8, 4, 2, 6, 4, 0.5, 2, 10


class Layer(nn.Module):
    """The projections of a layer, and something that uses them all: two groups of two heads."""

    def __init__(self, k: int):
        super().__init__()
        make = {"q_proj": (D, D), "k_proj": (D, 4), "v_proj": (D, 4), "o_proj": (D, D)}
        self.self_attn = nn.ModuleDict({n: nn.Linear(*s, bias=False) for n, s in make.items()})
        self.mlp = nn.ModuleDict({n: nn.Linear(*s, bias=False) for n, s in {"gate_proj": (D, F), "up_proj": (D, F), "down_proj": (F, D)}.items()})
        with torch.no_grad():
            for n, p in self.named_parameters():
                p.copy_(values(*p.shape, name=f"{k}{n}", std=0.4))

    def forward(self, x: Tensor) -> Tensor:
        a = self.self_attn
        v = a["v_proj"](x).view(*x.shape[:-1], 2, 1, SIZE).expand(*x.shape[:-1], 2, 2, SIZE).reshape(*x.shape[:-1], D)
        x = x + a["o_proj"](torch.tanh(a["q_proj"](x)) * v + a["k_proj"](x).repeat(*[1] * (x.dim() - 1), 2) * v)
        y: Tensor = x + self.mlp["down_proj"](torch.tanh(self.mlp["gate_proj"](x)) * self.mlp["up_proj"](x))
        return y


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(k) for k in range(LAYERS)])
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def check() -> str:
    method = METHODS["loraprune"](r=2, alpha=4.0, head=SIZE, ratio=RATIO, every=EVERY)  # type: ignore[call-arg]
    model = Model()
    adapted = attach(model, Plan(method))
    optimizer, x, y = adapted.optimizer(1e-2, steps=STEPS), values(6, D, name="x"), values(6, D, name="y")
    base = {n: p.detach().clone() for n, p in model.named_parameters() if n.endswith("_proj.weight")}
    I, kept, counts = torch.zeros(F, dtype=x.dtype), None, []  # noqa: E741
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        total = torch.zeros(F, dtype=x.dtype)
        for name, axis in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
            e = adapted.entries()[f"layers.1.mlp.{name}"]
            B, A, GB, GA = e.get("B").detach(), e.get("A").detach(), e.get("B").grad, e.get("A").grad
            S = ((GB @ A + B @ GA - GB @ GA) * (base[f"layers.1.mlp.{name}.weight"] + 2.0 * B @ A)).abs().sum(1 - axis)
            total = total + S / (S.norm() + 1e-8)
        I = 0.9 * I + 0.1 * total  # noqa: E741
        alive = adapted.entries()["layers.1.mlp.up_proj"].get("u").clone()
        optimizer.step()
        u = adapted.entries()["layers.1.mlp.up_proj"].get("u")
        if step % EVERY == 0:
            p = min(max((step - 0.1 * STEPS) / (0.8 * STEPS), 0.0), 1.0)
            count = int(F * RATIO * (1 - (1 - p) ** 3))
            dead = sorted(range(F), key=lambda i: (float(I[i] * alive[i]), i))[:count]
            close(f"masks after step {step}", u, torch.tensor([0.0 if i in dead else 1.0 for i in range(F)], dtype=x.dtype), 0.0)
            counts.append(count)
        if step == 5:
            kept = copy.deepcopy((optimizer.state_dict(), {k: t.detach().clone() for k, t in adapted.state().items()}))
    must(counts == sorted(counts) and counts[-1] == F // 2, f"counts {counts}")
    for k in (0, LAYERS - 1):
        must(bool(adapted.entries()[f"layers.{k}.mlp.up_proj"].get("u").all()), f"layer {k} was pruned")
    q = adapted.entries()["layers.1.self_attn.q_proj"].get("u").view(2, 4)
    v = adapted.entries()["layers.1.self_attn.v_proj"].get("u").view(2, 2)
    must(torch.equal(q[:, 0], v[:, 0]) and bool((q == q[:, :1]).all()) and int(v[:, 0].sum()) == 1, "heads of a group are masked together")
    other = Model()
    again = attach(other, Plan(method))
    resumed = again.optimizer(1e-2, steps=STEPS)
    assert kept is not None
    with torch.no_grad():
        for k, t in again.state().items():
            t.copy_(kept[1][k])
    resumed.load_state_dict(kept[0])
    for _ in range(5, STEPS):
        resumed.zero_grad()
        (other(x) - y).square().mean().backward()
        resumed.step()
    for k, t in adapted.state().items():
        same(k, again.state()[k], t)
    return f"{STEPS} steps, {counts} neurons masked; resumed to the bit"
