"""Routers: who is chosen, what moves, what gets a gradient; experts from adapters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import deltaw
from deltaw.errors import SpecError
from deltaw.methods import Arrow, FlyLoRA, LoRA, SMoRA
from deltaw.methods.routing import prototypes
from deltaw.testing.tiny import values

F64 = torch.float64


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(16, 24), nn.Linear(24, 16)]).to(F64)
        with torch.no_grad():
            for k, p in enumerate(self.parameters()):
                p.copy_(values(*p.shape, name=f"p{k}", std=0.3))

    def forward(self, x):
        return self.blocks[1](torch.tanh(self.blocks[0](x)))


def x_of(name="x", rows=6):
    return values(rows, 5, 16, name=name)


@pytest.mark.parametrize("method", [SMoRA(r=8, k=3, u=0.01), FlyLoRA(r=8, k=3, u=0.01)], ids=["smora", "flylora"])
def test_exactly_k_terms_act_and_the_bias_moves_by_u_once_a_step(method):
    net = Net().train()
    adapted = deltaw.attach(net, method)
    optimizer = adapted.optimizer(1e-2)
    for micro in (1, 3):
        before = {k: t.clone() for k, t in adapted.state().items() if k.endswith(".d")}
        optimizer.zero_grad()
        for part in x_of().chunk(micro):
            net(part).square().mean().backward()
        counts = {k: t.clone() for k, t in adapted.state().items() if k.endswith(".c")}
        assert all(int(c.sum()) == 3 * 30 for c in counts.values())
        optimizer.step()
        for site, entry in adapted.entries().items():
            moved, c = entry.get("d") - before[f"{site}.d"], counts[f"{site}.c"]
            torch.testing.assert_close(moved, 0.01 * torch.sign(c.mean() - c), rtol=0, atol=1e-12)
            assert not entry.get("c").any()
    net.eval()
    kept = {k: t.clone() for k, t in adapted.state().items()}
    net(x_of())
    assert all(torch.equal(t, kept[k]) for k, t in adapted.state().items())


def test_terms_that_no_token_chose_get_no_gradient():
    net = Net().train()
    adapted = deltaw.attach(net, SMoRA(r=8, k=2))
    with torch.no_grad():
        for e in adapted.entries().values():
            e.get("B").copy_(values(*e.get("B").shape, name="B"))
            e.get("d").copy_(torch.tensor([5.0, 4, 0, 0, 0, 0, 0, 0]))
    net(x_of()).square().mean().backward()
    for e in adapted.entries().values():
        assert not e.get("A").grad[2:].any() and not e.get("B").grad[:, 2:].any() and e.get("A").grad[:2].any()


def test_flyloras_projection_is_frozen_sparse_and_the_same_again():
    adapted = deltaw.attach(Net(), FlyLoRA(r=8, k=2))
    A = adapted.entries()["blocks.0"].get("A")
    assert bool(((A != 0).sum(1) == 16 * 2 // 8).all()) and not A.requires_grad
    assert torch.equal(A, deltaw.attach(Net(), FlyLoRA(r=8, k=2), "other").entries()["blocks.0"].get("A"))
    assert not torch.equal(A, deltaw.attach(Net(), FlyLoRA(r=8, k=2, seed=1)).entries()["blocks.0"].get("A"))
    net = Net()
    full = deltaw.attach(net, FlyLoRA(r=4, k=4, alpha=8.0))
    with torch.no_grad():
        for e in full.entries().values():
            e.get("B").copy_(values(*e.get("B").shape, name="B"))
    e, W, x = full.entries()["blocks.0"], net.blocks[0], x_of()
    torch.testing.assert_close(W(x), x @ (W.weight + 2.0 * e.get("B") @ e.get("A")).mT + W.bias, rtol=0, atol=1e-10)


def experts(count, r=3):
    out = {}
    for k in range(count):
        net = Net()
        out[f"e{k}"] = deltaw.attach(net, LoRA(r=r, alpha=2.0 * r))
        with torch.no_grad():
            for name, t in out[f"e{k}"].trainable().items():
                t.copy_(values(*t.shape, name=f"{k}{name}", std=0.5))
    return out


def test_arrows_prototypes_are_leading_right_singular_vectors():
    B, A = values(24, 6, name="B"), values(6, 16, name="A")
    V = prototypes(B, A, (3, 0, 3), 200)
    for k, part in ((0, slice(0, 3)), (2, slice(3, 6))):
        v = torch.linalg.svd(B[:, part] @ A[part])[2][0]
        assert float((V[k] @ v).abs()) == pytest.approx(1.0, abs=1e-8)
    assert not V[1].any()


def test_one_expert_is_that_lora_and_the_sign_of_a_prototype_is_nothing():
    one = experts(1)
    net = Net()
    adapted = deltaw.route(net, one, Arrow(top_k=1))
    torch.testing.assert_close(net(x_of()), one["e0"].model(x_of()), rtol=0, atol=1e-9)
    adapted.detach()
    three = experts(3)
    a = deltaw.route(net, three, Arrow(top_k=2))
    y = net(x_of())
    with torch.no_grad():
        for e in a.entries().values():
            e.get("V").neg_()
    torch.testing.assert_close(net(x_of()), y, rtol=0, atol=1e-12)
    assert not a.trainable()
    with deltaw.watch_routing(a) as seen:
        net(x_of())
    for found in seen.sites.values():
        assert sum(found["weight"]) == pytest.approx(1.0) and sum(found["share"]) == pytest.approx(2.0) and found["tokens"] == 30
    net(x_of())  # nothing is recorded any more
    assert all(found["tokens"] == 30 for found in seen.sites.values())


@pytest.mark.parametrize("subtract", [False, True])
def test_arrow_is_pefts_arrow(subtract):
    """PEFT's layer over the same experts (its power iteration with more rounds: the sign and the start do not matter then)."""
    arrow = pytest.importorskip("peft.tuners.lora.arrow")
    from peft import ArrowConfig

    three, general = experts(3), experts(5)
    general = {k: general[k] for k in ("e3", "e4")} if subtract else {}
    net, x = Net(), x_of()
    adapted = deltaw.route(net, three, Arrow(top_k=2, tau=0.7, rounds=400), general=general)
    config = ArrowConfig(top_k=2, router_temperature=0.7, use_gks=subtract)
    config.task_adapter_names, config.gks_adapter_names = list(three), list(general)

    def linear(t):
        layer = torch.nn.Linear(t.shape[1], t.shape[0], bias=False, dtype=torch.float64)
        layer.weight.data.copy_(t)
        return layer

    site = "blocks.0"
    layer = arrow.ArrowLoraLinearLayer(16, config)
    factors = {k: a.to_lora().factors[site] for k, a in (three | general).items()}
    lora_B, lora_A = ({k: linear(pair[i]) for k, pair in factors.items()} for i in (0, 1))
    layer.gen_know_sub(lora_A, lora_B)
    found = [layer.top_right_singular_vec_from_BA(lora_A[k].weight, lora_B[k].weight, iters=400) for k in three]
    layer.register_buffer("prototypes", torch.stack(found).double())
    theirs = layer(x, lora_A, lora_B, torch.nn.Identity(), dict.fromkeys(three, 1.0))
    module = net.blocks[0]
    ours = module(x) - torch.nn.functional.linear(x, module.weight, module.bias)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert float(theirs.detach().abs().max()) > 0.1
    adapted.detach()


def test_general_knowledge_is_subtracted_factor_by_factor():
    two, general = experts(2), experts(1)
    net = Net()
    adapted = deltaw.route(net, two, Arrow(top_k=1), general=general)
    g = general["e0"].to_lora().factors["blocks.0"]
    B, A = (t["blocks.0"] for t in [{k: v[0] for k, v in two["e1"].to_lora().factors.items()}, {k: v[1] for k, v in two["e1"].to_lora().factors.items()}])
    e = adapted.entries()["blocks.0"]
    torch.testing.assert_close(e.get("B")[:, 3:], B - g[0])
    torch.testing.assert_close(e.get("A")[3:], A - g[1])
    with pytest.raises(SpecError, match="one rank"):
        deltaw.route(Net(), two, Arrow(top_k=1), general=experts(1, r=2))


def test_fusion_is_the_plain_sum_at_open_gates_and_knows_no_order():
    three = experts(3)
    net = Net()
    adapted = deltaw.route(net, three, "autolora_fusion")
    y = net(x_of())
    plain = Net()
    with torch.no_grad():
        for k, layer in enumerate(plain.blocks):
            layer.weight.add_(sum(B @ A for B, A in (e.to_lora().factors[f"blocks.{k}"] for e in three.values())))
    torch.testing.assert_close(y, plain(x_of()), rtol=0, atol=1e-9)
    with torch.no_grad():
        for k, t in adapted.trainable().items():
            t.add_(values(*t.shape, name=k, std=0.3))
    y = net(x_of())
    other = Net()
    turned = deltaw.route(other, dict(reversed(three.items())), "autolora_fusion")
    with torch.no_grad():
        for k, t in turned.trainable().items():
            t.copy_(adapted.trainable()[k])
    torch.testing.assert_close(other(x_of()), y, rtol=0, atol=1e-10)
    net(x_of()).square().mean().backward()
    assert all(t.grad is not None for t in adapted.trainable().values()) and sum(t.numel() for t in adapted.trainable().values()) == 9 * 40


def test_what_does_not_fit_is_said():
    for bad in (SMoRA(r=4, k=5), SMoRA(r=5, k=2, q=2), FlyLoRA(r=4, k=5), Arrow(ranks=(2, 2), top_k=3)):
        with pytest.raises(SpecError):
            deltaw.attach(Net(), bad)
