"""Sparse and elastic adapters, QWHA's start on a quantised base, and models without some of their units."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import deltaw
from deltaw.codecs import NF, Affine
from deltaw.errors import SpecError
from deltaw.methods import QWHA, SQFT, SQFTQA, LoNAS, LoRA, PRILoRA
from deltaw.methods.compress.indices import IndexMap
from deltaw.methods.pruning import estimate, unit_scores
from deltaw.methods.rank.allocators import floors as budget
from deltaw.prune import by_norm, finished, kept, prune_structured, recover
from deltaw.testing.tiny import values

F64 = torch.float64


class One(nn.Module):
    def __init__(self, m=24, n=16, dtype=F64):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(n, m)]).to(dtype)
        with torch.no_grad():
            for k, p in enumerate(self.parameters()):
                p.copy_(values(*p.shape, name=f"p{k}", std=0.3, dtype=dtype))

    def forward(self, x):
        return self.blocks[0](x)


def data(count=5, n=16, dtype=F64):
    return [values(8, n, name=f"b{k}", dtype=dtype) for k in range(count)]


def llama(heads=4, groups=2, layers=3, seed=0):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": layers}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=heads, num_key_value_heads=groups)).eval()


IDS = torch.arange(24).view(2, 12) % 60


# ---- SQFT


def test_sqft_keeps_zeros_and_merges_what_it_was():
    net = One()
    deltaw.compress(net, "shears", 0.5, data())
    zeros = net.blocks[0].weight == 0
    adapted = deltaw.attach(net, SQFT(r=4, alpha=8.0))
    with torch.no_grad():
        adapted.entries()["blocks.0"].get("B").copy_(values(24, 4, name="B"))
    x = data(1)[0]
    y = net(x)
    y.square().sum().backward()
    merged = adapted.merge().model()
    assert torch.equal(merged.blocks[0].weight == 0, zeros)
    torch.testing.assert_close(merged(x), y, rtol=0, atol=1e-12)


def test_sqft_on_a_grid_is_exact_in_whole_numbers():
    net = One(n=16)
    codec = Affine(4, 8)
    with torch.no_grad():
        W = net.blocks[0].weight
        W[:, ::3] = 0
        W.copy_(codec.decode(codec.encode(W), (24, 16)))
    zeros, x = net.blocks[0].weight == 0, data(1)[0]
    y = net(x)
    adapted = deltaw.attach(net, SQFTQA(r=4, alpha=8.0, group=8))
    torch.testing.assert_close(net(x), y, rtol=0, atol=1e-6)
    entry = adapted.entries()["blocks.0"]
    with torch.no_grad():
        entry.get("B").copy_(values(24, 4, name="B", std=0.2))
    p = entry.tensors({})
    codes = entry.method.codes(adapted.assignments[0].site.leaf().op, p)
    assert torch.equal(codes, codes.round()) and 0 <= float(codes.min()) and float(codes.max()) <= 15
    merged = adapted.merge().model()
    assert torch.equal(merged.blocks[0].weight == 0, zeros | (merged.blocks[0].weight == 0))
    assert not merged.blocks[0].weight[zeros].any()
    torch.testing.assert_close(merged(x), net(x), rtol=0, atol=1e-10)
    (codes * values(24, 16, name="pull")).sum().backward()
    G = entry.get("B").grad
    assert G is not None and bool(G.any())


# ---- elastic ranks and widths


def test_groups_share_their_draw_and_what_is_not_drawn_stands_still():
    net = llama().double()
    adapted = deltaw.attach(net, deltaw.Plan(LoNAS(ranks=(6, 4, 2), widths=(1.0, 0.5)), targets="all-linear", exclude=["lm_head"]))
    net.train()
    optimizer = adapted.optimizer(1e-2)
    seen = set()
    for _ in range(8):
        before = {k: t.detach().clone() for k, t in adapted.trainable().items()}
        masks = {s: (e.get("at").clone(), e.get("w").clone()) for s, e in adapted.entries().items()}
        optimizer.zero_grad()
        net(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        for s, (at, w) in masks.items():
            moved = adapted.trainable()[f"{s}.A"] - before[f"{s}.A"]
            assert not moved[at == 0].any()
            if not s.endswith(("gate_proj", "up_proj")):
                assert bool(w.all())
        for layer in range(3):
            stem = f"model.layers.{layer}"
            ranks = {int(masks[f"{stem}.self_attn.{k}_proj"][0].sum()) for k in "qkv"}
            widths = {int(masks[f"{stem}.mlp.{k}_proj"][1].sum()) for k in ("gate", "up")}
            assert len(ranks) == len(widths) == 1
            seen |= ranks
    assert len(seen) > 1
    full = llama().double()
    plain = deltaw.attach(full, deltaw.Plan(LoRA(r=6, alpha=64.0), targets="all-linear", exclude=["lm_head"]))
    with torch.no_grad():
        for k, t in plain.trainable().items():
            t.copy_(adapted.trainable()[k])
    net.eval()
    torch.testing.assert_close(net(input_ids=IDS).logits, full(input_ids=IDS).logits, rtol=0, atol=1e-10)


def test_prilora_prunes_exactly_its_share_by_weight_and_input():
    net = One()
    adapted = deltaw.attach(net, PRILoRA(r=4, every=3, share=0.5))
    net.train()
    optimizer = adapted.optimizer(1e-2)
    A = adapted.entries()["blocks.0"].get("A")
    x̄ = torch.zeros(16, dtype=F64)
    for step in range(1, 7):
        x = data(1)[0] * torch.arange(1, 17)
        optimizer.zero_grad()
        for part in x.chunk(2):
            net(part).square().mean().backward()
        optimizer.step()
        x̄ = 0.9 * x̄ + 0.1 * x.square().sum(0).sqrt()
        assert bool(((A == 0).sum(1) == (8 if step % 3 == 0 else (A == 0).sum(1))).all())
        if step == 3:
            for row in A:
                zero = (row == 0).nonzero().flatten().tolist()
                assert len(zero) == 8
    assert torch.isfinite(A).all()


# ---- QWHA on a quantised base


def qwha(r, init="qwha_quant"):
    model, original = One(dtype=torch.float32), One(dtype=torch.float32)
    deltaw.quantise(model, NF(2, 16))
    plan = deltaw.Plan(QWHA(r=r), init=init)
    stats = deltaw.probe(model, data(dtype=torch.float32), plan, original=original)
    adapted = deltaw.attach(model, plan, stats=stats)
    X = torch.cat(data(dtype=torch.float32))
    E = original.blocks[0].weight - model.blocks[0].dense()
    change = deltaw.convert.site_delta(adapted, adapted.assignments[0]).dense()
    return float(((E - change) @ X.mT).norm()), float((E @ X.mT).norm()), adapted, E, change


def test_qwha_starts_nearer_the_more_it_may_write_and_exact_with_all():
    errors = [qwha(r)[:2] for r in (1, 2, 4)]
    assert errors[0][1] > errors[0][0] > errors[1][0] > errors[2][0]
    assert sum(budget(torch.tensor([3.0, 1.0, 0.0, 2.0]), 11, 4)) == 11 and max(budget(torch.tensor([9.0, 1.0]), 7, 4)) <= 4
    off, _, adapted, E, change = qwha(9)  # 9 (24 + 16) = 360 of 384
    assert off < 0.2 * errors[2][0] and len(adapted.entries()["blocks.0"].get("I").unique()) == 360
    with pytest.raises(SpecError, match="qwha"):
        net = One(dtype=torch.float32)
        plan = deltaw.Plan(LoRA(r=2), init="qwha_quant")
        deltaw.attach(net, plan, stats=deltaw.probe(net, data(dtype=torch.float32), plan, original=One(dtype=torch.float32)))


# ---- heads and neurons


def test_restrict_and_embed_are_each_others_inverse():
    mapped = IndexMap((10, 8), torch.tensor([1, 4, 7]), torch.tensor([0, 5]))
    B, A = values(3, 2, name="B"), values(2, 2, name="A")
    big = mapped.embed((B, A))
    assert all(torch.equal(a, b) for a, b in zip(mapped.factors(big), (B, A)))
    assert torch.equal(mapped.restrict(big[0] @ big[1]), B @ A) and int(((big[0] @ big[1]) != 0).sum()) == 6


def test_a_pruned_model_is_the_masked_one_with_grouped_queries():
    net = llama().double()
    keep = {1: {"groups": torch.tensor([1]), "neurons": torch.arange(0, 40, 3)}}
    small = prune_structured(net, keep)
    masked = copy.deepcopy(net)
    with torch.no_grad():
        layer = masked.model.layers[1]
        layer.self_attn.v_proj.weight[:8] = 0  # the group that is gone: nothing comes from its values
        gone = [i for i in range(40) if i % 3]
        layer.mlp.up_proj.weight[gone] = 0
    torch.testing.assert_close(small.model(input_ids=IDS).logits, masked(input_ids=IDS).logits, rtol=0, atol=1e-10)
    assert small.model.model.layers[1].self_attn.q_proj.weight.shape == (16, 32)
    with pytest.raises(SpecError, match="0 to 1"):
        prune_structured(net, {1: {"groups": torch.tensor([5])}})


def test_an_adapter_of_the_small_model_is_recovered_on_the_large_one():
    net = llama()
    small = prune_structured(net, by_norm(net, 0.5))
    adapted = deltaw.attach(small.model, deltaw.Plan(LoRA(r=2, alpha=4.0), exclude=["lm_head"]))
    with torch.no_grad():
        for k, t in adapted.trainable().items():
            t.copy_(values(*t.shape, name=k, std=0.3, dtype=torch.float32))
    for new in ("zero", "normal"):
        large = llama()
        out = recover(adapted, small, large, new)
        for site, (B, A) in out.to_lora().factors.items():
            b, a = adapted.to_lora().factors[site]
            change, mapped = B @ A, small.maps[site]
            torch.testing.assert_close(mapped.restrict(change), b @ a, rtol=1e-5, atol=1e-6)
            if new == "zero":
                assert int((change != 0).sum()) <= b.shape[0] * a.shape[1]
        merged = out.merge().model()
        q = "model.layers.1.self_attn.q_proj"
        diff = merged.get_submodule(q).weight - llama().get_submodule(q).weight
        torch.testing.assert_close(diff, out.to_lora().factors[q][0] @ out.to_lora().factors[q][1], rtol=1e-4, atol=1e-6)


def test_qloram_trains_on_codes_of_the_small_model_and_infers_on_the_large_one():
    net, large = llama(), llama()
    small = prune_structured(net, by_norm(net, 0.5))
    deltaw.quantise(small.model, "nf4", exclude=["lm_head"])
    adapted = deltaw.attach(small.model, deltaw.Plan(LoRA(r=2, alpha=4.0), exclude=["lm_head"]))
    optimizer, losses = adapted.optimizer(3e-2), []
    for _ in range(8):
        optimizer.zero_grad()
        loss = small.model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    out = recover(adapted, small, large)
    for site, (b, a) in adapted.to_lora().factors.items():
        B, A = out.to_lora().factors[site]
        torch.testing.assert_close(small.maps[site].restrict(B @ A), b @ a, rtol=1e-5, atol=1e-6)
    before = float(llama()(input_ids=IDS, labels=IDS).loss.detach())
    assert float(large(input_ids=IDS, labels=IDS).loss.detach()) < before


def test_loraprunes_estimate_and_scores_by_loops():
    W, B, A, GB, GA = values(6, 5, name="W"), values(6, 2, name="B"), values(2, 5, name="A"), values(6, 2, name="GB"), values(2, 5, name="GA")
    want = torch.zeros(6, 5)
    for i in range(6):
        for j in range(5):
            want[i, j] = GB[i] @ A[:, j] + B[i] @ GA[:, j] - GB[i] @ GA[:, j]
    torch.testing.assert_close(estimate(B, A, GB, GA), want.double(), rtol=0, atol=1e-5)
    S = (estimate(B, A, GB, GA) * (W + 2.0 * B @ A)).abs()
    for axis in (0, 1):
        torch.testing.assert_close(unit_scores(W, B, A, 2.0, GB, GA, axis, rows=4), S.sum(1 - axis))


def test_loraprune_masks_grow_and_cutting_is_masking():
    net = llama(layers=4)
    adapted = deltaw.attach(net, deltaw.Plan({"key": "loraprune", "r": 4, "head": 8, "ratio": 0.5, "every": 2}, exclude=["lm_head"]))
    optimizer = adapted.optimizer(1e-3, steps=12)
    net.train()
    before = {}
    for _ in range(12):
        optimizer.zero_grad()
        net(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        for s, e in adapted.entries().items():
            u = e.get("u").clone()
            assert s not in before or bool((u <= before[s]).all())  # what is masked stays masked
            before[s] = u
    net.eval()
    keep = kept(adapted)
    assert {k: len(v["neurons"]) for k, v in keep.items()} == {0: 40, 1: 20, 2: 20, 3: 40}
    assert {k: len(v["groups"]) for k, v in keep.items()} == {0: 2, 1: 1, 2: 1, 3: 2}
    y = net(input_ids=IDS).logits
    small = finished(adapted)
    torch.testing.assert_close(small.model(input_ids=IDS).logits, y, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net(input_ids=IDS).logits, y)
    assert any("loraprune" in e["what"] for e in adapted.events)
