"""Sparse and selective methods: what is chosen, when, and what a step does, each against the plain training of W itself."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from train_kit import jsonl, pairs, tiny_model, tiny_tokenizer

import deltaw
from deltaw.bench.count import saved_bytes
from deltaw.errors import SpecError
from deltaw.methods import LIFT, LTSFT, DoRA, LoSiA, PaCA, SHiRA, Supertuning
from deltaw.methods.rules.localise import block
from deltaw.methods.sparse import Sparse, rechoose, stripes, top
from deltaw.ops import delta
from deltaw.plan import Plan
from deltaw.rules import Engine, View
from deltaw.testing.tiny import Tiny, settle, values

LR, B1, B2, EPS = 1e-2, 0.9, 0.99, 1e-8


def batch(k):
    return values(6, 16, name=f"x{k}"), values(6, 16, name=f"y{k}")


def loss(model, k):
    x, y = batch(k)
    return (model(x) - y).square().mean()


def net():
    return settle(Tiny(), torch.float64)


def start(method, **kw):
    model = net()
    adapted = deltaw.attach(model, Plan(method, targets="all-linear", **kw))
    optimizer = adapted.optimizer(lr=LR, betas=(B1, B2), eps=EPS)
    return model, adapted, optimizer


def step(model, optimizer, k):
    loss(model, k).backward()
    optimizer.step()
    optimizer.zero_grad()


def weights(adapted):
    entries = adapted.entries()
    return {a.site.name: entries[a.site.name].layer(a.site.leaf(), {}).op.dense().detach().clone() for a in adapted.assignments}


class Reference:
    """W itself trained by Adam, entries chosen by a 0/1 mask; moments are dense."""

    def __init__(self):
        self.model = net()
        self.W = {n: m.weight for n, m in self.model.named_modules() if isinstance(m, nn.Linear)}
        self.m = {n: torch.zeros_like(w) for n, w in self.W.items()}
        self.v = {n: torch.zeros_like(w) for n, w in self.W.items()}
        self.t = 0

    def gradients(self, k):
        self.model.zero_grad()
        loss(self.model, k).backward()
        return {n: w.grad.clone() for n, w in self.W.items()}

    @torch.no_grad()
    def step(self, G, mask, rate=lambda n: 1.0):
        self.t += 1
        for n, w in self.W.items():
            g = G[n] * mask[n]
            self.m[n] = B1 * self.m[n] + (1 - B1) * g
            self.v[n] = B2 * self.v[n] + (1 - B2) * g * g
            move = (self.m[n] / (1 - B1**self.t)) / ((self.v[n] / (1 - B2**self.t)).sqrt() + EPS)
            w -= LR * rate(n) * move * mask[n]

    def mask(self, chosen):
        out = {}
        for n, w in self.W.items():
            out[n] = torch.zeros_like(w)
            out[n].view(-1)[chosen[n]] = 1.0
        return out


def same(got, want, tol=1e-9):
    for n, w in want.items():
        torch.testing.assert_close(got[n], w, rtol=0, atol=tol, msg=lambda text, n=n: f"{n}: {text}")


# ---- choosing


def test_top_takes_the_first_of_equals():
    score = torch.tensor([[1.0, 3.0, 2.0], [3.0, 3.0, 0.0]])
    assert top(score, 2).tolist() == [1, 3] and top(score, 4).tolist() == [1, 2, 3, 4]
    assert top(score, 2, largest=False).tolist() == [0, 5]


@pytest.mark.parametrize("m, n, r", [(24, 16, 2), (16, 24, 3), (16, 16, 1), (16, 16, 8), (3, 40, 2)])
def test_stripes_are_the_diagonal_and_rows(m, n, r):
    K = min(r * (m + n), m * n)
    I = stripes(m, n, K)  # noqa: E741
    mask = torch.zeros(m * n)
    mask[I] = 1.0
    mask = mask.view(m, n)
    assert len(I) == K == int(mask.sum()) and (mask.diagonal() == 1).all()
    whole, part = int((mask.sum(1) == n).sum()), int(((mask.sum(1) > 1) & (mask.sum(1) < n)).sum())
    assert part <= 1 and torch.linalg.matrix_rank(mask * values(m, n, name="any")) == min(m, n)
    assert whole >= (K - min(m, n)) // n  # every position beside the diagonal is in a whole row, but for the last


def test_structured_masks_on_other_rows_disturb_each_other_less_than_random_ones():
    """AWOR, 1 - nnz(A1ᵀ A2) / n²: higher is better."""

    def awor(one, two):
        found = []
        for seed, method in enumerate((one, two)):
            adapted = deltaw.attach(net(), Plan(method, targets=["0.sq"], seed=seed))
            p = adapted.entries()["blocks.0.sq"].tensors({})
            found.append(Sparse(p.I, torch.ones(len(p.I)), (16, 16)).dense())
        return 1 - int((found[0].mT @ found[1] != 0).sum()) / 256

    random = awor(SHiRA(r=1), SHiRA(r=1))
    assert awor(SHiRA(r=1, mask="struct"), SHiRA(r=1, mask="struct", first=5)) > random


@pytest.mark.parametrize("mask", ["grad", "snip"])
def test_shira_chooses_by_the_gradients_of_the_first_steps(mask):
    model, adapted, optimizer = start(SHiRA(r=2, mask=mask, steps=2))
    reference = Reference()
    before = weights(adapted)
    G = {n: torch.zeros_like(w) for n, w in reference.W.items()}
    for k in range(2):
        step(model, optimizer, k)
        for n, g in reference.gradients(k).items():
            G[n] += g
    assert all(torch.equal(before[n], w) for n, w in weights(adapted).items())  # nothing has moved
    assert not optimizer.state and not any(m._forward_hooks for m in model.modules())
    for n, e in adapted.entries().items():
        score = (G[n] * (reference.W[n] if mask == "snip" else 1.0)).detach().abs()
        assert set(e.get("I").tolist()) == set(score.flatten().topk(len(e.get("I"))).indices.tolist())
    chosen = reference.mask({n: e.get("I") for n, e in adapted.entries().items()})
    for k in range(2, 5):
        step(model, optimizer, k)
        reference.step(reference.gradients(k), chosen)
    same(weights(adapted), reference.W)


@pytest.mark.parametrize("method", [SHiRA(r=2), SHiRA(r=2, mask="struct"), Supertuning(sparsity=0.8), PaCA(r=3, alpha=3.0),
                                    LoSiA(p=0.25), LIFT(k=2, f=3)])  # fmt: skip
def test_training_is_that_of_W_under_a_mask(method):
    model, adapted, optimizer = start(method)
    reference, mask = Reference(), {}
    for n, e in adapted.entries().items():
        mask[n] = torch.zeros_like(reference.W[n])
        if method.key == "paca":
            mask[n][:, e.get("J")] = 1.0
        elif method.key == "losia":
            mask[n][e.get("I")[:, None], e.get("J")] = 1.0
        else:
            mask[n].view(-1)[e.get("I")] = 1.0
    base = weights(adapted)
    for k in range(4):
        step(model, optimizer, k)
        reference.step(reference.gradients(k), mask)
    now = weights(adapted)
    same(now, reference.W)
    assert all(torch.equal(now[n][mask[n] == 0], base[n][mask[n] == 0]) for n in mask)
    assert all((now[n] != base[n])[mask[n] == 1].all() for n in mask)


# ---- memory


@pytest.mark.parametrize("method, count", [
    (SHiRA(r=2), lambda m, n: 2 * (m + n)), (Supertuning(sparsity=0.95), lambda m, n: int(m * n * (1 - 0.95))),
    (PaCA(r=2), lambda m, n: 2 * m), (LIFT(k=2, f=3), lambda m, n: 2 * (m + n)),
    (LoSiA(p=0.125), lambda m, n: (m // 8) * (n // 8)),
])  # fmt: skip
def test_gradients_and_optimiser_state_are_of_the_selected_entries_only(method, count):
    for m, n in ((64, 48), (128, 96)):
        model = nn.Sequential(nn.Linear(n, m))
        adapted = deltaw.attach(model, Plan(method, targets=["0"]))
        optimizer = adapted.optimizer(lr=LR)
        x = torch.randn(200, n, requires_grad=True)
        output = model(x)
        output.square().mean().backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        optimizer.step()
        state = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
        K = count(m, n)
        assert sum(t.numel() for t in grads) == K
        assert sum(t.numel() for t in state) == 2 * K + len(optimizer.state)  # and a counter each
        held = saved_bytes(model, lambda model=model, x=x: model(x).square().mean())
        assert held <= 4 * (x.numel() + 2 * output.numel()), "a forward keeps more than its input and output"


def test_columns_and_blocks_keep_only_the_picked_entries_of_the_input():
    for method, width in ((PaCA(r=2), 2), (LoSiA(p=0.125), 6)):
        model = nn.Sequential(nn.Linear(48, 64))
        deltaw.attach(model, Plan(method, targets=["0"]))
        x = torch.randn(200, 48, requires_grad=True)
        held = saved_bytes(model, lambda model=model, x=x: model(x))
        assert held <= 4 * (200 * width + 3 * 64 * width), (method, held)


# ---- LIFT


def test_lift_is_the_largest_of_the_low_rank_part_and_magnitude_at_full_rank():
    _, adapted, _ = start(LIFT(k=1, f=3))
    _, whole, _ = start(LIFT(k=1, f=16))
    for n, w in weights(adapted).items():
        U, S, V = torch.linalg.svd(w)
        low = (U[:, :3] @ torch.diag(S[:3]) @ V[:3]).abs().flatten()
        K = sum(w.shape)
        assert set(adapted.entries()[n].get("I").tolist()) == set(low.topk(K).indices.tolist())
        assert set(whole.entries()[n].get("I").tolist()) == set(w.abs().flatten().topk(K).indices.tolist())


def test_lift_over_several_choices_is_sparse_adam_on_W(tmp_path):
    model, adapted, optimizer = start(LIFT(k=2, f=3, every=2))
    reference = Reference()

    def choose():
        out = {}
        for n, w in reference.W.items():
            U, S, V = torch.linalg.svd(w.detach(), full_matrices=False)
            out[n] = (U[:, :3] @ torch.diag(S[:3]) @ V[:3]).abs().flatten().topk(2 * sum(w.shape)).indices
        return out

    chosen = choose()
    left = 0
    for k in range(7):
        step(model, optimizer, k)
        mask = reference.mask(chosen)
        reference.step(reference.gradients(k), mask)
        if k % 2:
            chosen = choose()
            new = reference.mask(chosen)
            for n in mask:  # moments of entries in both are kept
                reference.m[n] *= new[n]
                reference.v[n] *= new[n]
                left += int((mask[n] > new[n]).sum())
            same({n: e.get("I").double() for n, e in adapted.entries().items()},
                 {n: t.sort().values.double() for n, t in chosen.items()})  # fmt: skip
    assert left > 20
    same(weights(adapted), reference.W, 1e-8)
    for n, e in adapted.entries().items():
        state = optimizer.state[e.get("v")]
        torch.testing.assert_close(state["exp_avg"], reference.m[n].flatten()[e.get("I")], rtol=0, atol=1e-9)
        assert int(state["step"]) == 7
        assert len(e.get("I0")) and not set(e.get("I0").tolist()) & set(e.get("I").tolist())
    want = model(batch(0)[0])
    adapted.save(tmp_path / "a")
    other = net()
    deltaw.load(other, tmp_path / "a")
    assert torch.equal(other(batch(0)[0]), want)  # the past has another size than at the start
    adapted.merge(probe=batch(0)[0])


def test_a_choice_moves_no_weight_and_the_past_comes_back():
    model, adapted, optimizer = start(LIFT(k=1, f=3, every=1000))
    for k in range(2):
        step(model, optimizer, k)
    before = weights(adapted)
    engine = Engine(adapted, [])
    engine.optimizer = optimizer
    for a in adapted.assignments:
        view = View(engine, adapted.entries()[a.site.name], [(a.site, False)], a.method, (0, 1))
        first = view.p.I.clone()
        other = (a.site.shape[0] * a.site.shape[1] - 1 - first).flip(0)
        for old, new in ((first, other), (other, first)):  # away, and back again
            rechoose(view, old, new, view.p.v.shape, I=new)
            assert torch.equal(weights(adapted)[a.site.name], before[a.site.name])
            assert len(view.p.I0) == (len(set(first.tolist()) - set(other.tolist())) if new is other else 0)


# ---- LoSiA


def test_a_block_covers_at_least_what_either_order_finds():
    for k in range(20):
        score = values(24, 16, name=f"s{k}").abs() ** 3
        I, J = block(score, 6, 4)  # noqa: E741
        assert len(set(I.tolist())) == 6 and len(set(J.tolist())) == 4
        rows, columns = score.sum(1).topk(6).indices, score.sum(0).topk(4).indices
        then_columns = score[rows].sum(0).topk(4).values.sum()
        then_rows = score[:, columns].sum(1).topk(6).values.sum()
        covered = score[I][:, J].sum()
        assert covered >= max(then_columns, then_rows, score[rows][:, columns].sum()) - 1e-12


def test_losia_is_adam_on_blocks_that_move_layer_by_layer():
    T, L = 3, 2
    model, adapted, optimizer = start(LoSiA(p=0.25, T=T))
    reference = Reference()
    layer = {n: int(n.split(".")[1]) for n in reference.W}
    blocks = {n: (e.get("I").clone(), e.get("J").clone()) for n, e in adapted.entries().items()}
    moved, ema, changes = {}, {}, []
    for k in range(4 * T):
        G = reference.gradients(k)
        watched = {n for n, m in model.named_modules() if m._forward_hooks}
        assert watched == {n for n in layer if k // T % L == layer[n]}
        for n in watched:
            t = reference.W[n].detach() * G[n]
            q = (t - t * t / 2).abs()
            mean, spread = ema.get(n, (torch.zeros_like(q), torch.zeros_like(q))) if k % T else (q * 0, q * 0)
            mean = 0.85 * mean + 0.15 * q
            ema[n] = (mean, 0.85 * spread + 0.15 * (q - mean).abs())
        mask = {n: torch.zeros_like(w) for n, w in reference.W.items()}
        for n, (I, J) in blocks.items():  # noqa: E741
            mask[n][I[:, None], J] = 1.0
        step(model, optimizer, k)
        reference.step(G, mask, lambda n, k=k: min(1.0, (k - moved[n]) / T) if n in moved else 1.0)
        if (k + 1) % T == 0:
            for n in watched:
                blocks[n] = block(ema[n][0] * ema[n][1], *(len(t) for t in blocks[n]))
                moved[n] = k + 1
                reference.m[n].zero_()
                reference.v[n].zero_()
                changes.append((k + 1, layer[n]))
                e = adapted.entries()[n]
                assert torch.equal(e.get("I"), blocks[n][0]) and torch.equal(e.get("J"), blocks[n][1])
                state = optimizer.state[e.get("v")]
                assert not state["exp_avg"].any() and not state["exp_avg_sq"].any() and int(state["step"]) == k + 1
        same(weights(adapted), reference.W, 1e-8)
    assert sorted(set(changes)) == [(3, 0), (6, 1), (9, 0), (12, 1)]  # every layer once in L T steps


# ---- LT-SFT


def test_lt_sft_is_train_select_rewind_train_under_the_mask():
    model, adapted, optimizer = start(LTSFT(keep=0.1, steps=3, l1=0.5))
    reference = Reference()
    theta0 = {n: w.detach().clone() for n, w in reference.W.items()}
    total = sum(w.numel() for w in theta0.values())

    def train(steps, mask):
        for k in steps:
            G = reference.gradients(k)
            G = {n: g + 0.5 / total * (reference.W[n].detach() - theta0[n]).sign() for n, g in G.items()}
            step(model, optimizer, k)
            reference.step(G, mask)

    train(range(3), {n: torch.ones_like(w) for n, w in theta0.items()})
    moved = torch.cat([(reference.W[n].detach() - theta0[n]).abs().flatten() for n in theta0])
    K = int(0.1 * total)
    edge = moved.topk(K).values[-1]
    mask = {n: ((reference.W[n].detach() - theta0[n]).abs() >= edge).double() for n in theta0}
    assert sum(len(e.get("I")) for e in adapted.entries().values()) == K == sum(int(t.sum()) for t in mask.values())
    assert len({len(e.get("I")) / theta0[n].numel() for n, e in adapted.entries().items()}) > 1  # a budget for all sites
    same(weights(adapted), theta0, 0.0)  # rewound
    assert not optimizer.state
    reference.model.load_state_dict(net().state_dict())
    reference.t = 0
    for n in theta0:
        reference.m[n].zero_()
        reference.v[n].zero_()
    train(range(3, 7), mask)
    same(weights(adapted), reference.W)
    now = weights(adapted)
    assert all(torch.equal(now[n][mask[n] == 0], theta0[n][mask[n] == 0]) for n in mask)
    assert sum(t.numel() for s in optimizer.state.values() for t in s.values() if t.dim()) == 2 * K


def test_sparse_fine_tunings_add_up_in_any_order(tmp_path):
    for name, seed in (("language", 1), ("task", 2)):
        model, adapted, optimizer = start(LTSFT(keep=0.1, steps=2))
        for k in range(4):
            step(model, optimizer, k + 10 * seed)
        adapted.save(tmp_path / name)
    outputs = []
    for order in (["language", "task"], ["task", "language"]):
        model = net()
        changes = {}
        for name in order:
            deltaw.load(model, tmp_path / name, name=name)
            for a in next(x for x in deltaw.adapters(model) if x.name == name).assignments:
                e = next(x for x in deltaw.adapters(model) if x.name == name).entries()[a.site.name]
                W = a.site.leaf()
                changes.setdefault(a.site.name, []).append(delta(e.layer(W, {}).op, W.op).dense())
        with deltaw.activate(model, order):
            outputs.append(model(batch(0)[0]).detach())
        twin = net()
        with torch.no_grad():
            for n, found in changes.items():
                twin.get_submodule(n).weight += sum(found)
        torch.testing.assert_close(outputs[-1], twin(batch(0)[0]).detach())
    torch.testing.assert_close(*outputs)


def test_a_site_may_keep_no_entry_at_all(tmp_path):
    model, adapted, optimizer = start(LTSFT(keep=0.003, steps=1))
    for k in range(4):
        step(model, optimizer, k)
    counts = [len(e.get("v")) for e in adapted.entries().values()]
    assert 0 in counts and sum(counts) == 3
    adapted.save(tmp_path / "a")
    other = net()
    deltaw.load(other, tmp_path / "a")
    assert torch.equal(other(batch(0)[0]), model(batch(0)[0]))


# ---- PaCA


def test_paca_columns_by_norm_and_by_gradient():
    _, adapted, _ = start(PaCA(r=3, columns="norm"))
    model, by_gradient, optimizer = start(PaCA(r=3, alpha=6.0, columns="gradient", steps=2))
    reference = Reference()
    want = {n: reference.gradients(0)[n] + reference.gradients(1)[n] for n in reference.W}
    base = weights(by_gradient)
    for k in range(2):
        step(model, optimizer, k)
    assert all(torch.equal(base[n], w) for n, w in weights(by_gradient).items())
    for n, w in base.items():
        J = adapted.entries()[n].get("J")
        assert set(J.tolist()) == set(w.norm(dim=0).topk(3).indices.tolist())
        e = by_gradient.entries()[n]
        assert set(e.get("J").tolist()) == set(want[n].norm(dim=0).topk(3).indices.tolist())
        torch.testing.assert_close(2.0 * e.get("Wc"), w[:, e.get("J")])
    step(model, optimizer, 2)
    for n, w in weights(by_gradient).items():
        e = by_gradient.entries()[n]
        torch.testing.assert_close(w[:, e.get("J")], 2.0 * e.get("Wc").detach())  # W'[:, J] = s Wc
        assert math.isclose(float((w - base[n]).abs().max()), 2.0 * LR, rel_tol=1e-3)  # s times Adam's step


def test_paca_is_a_lora_of_rank_r():
    model, adapted, optimizer = start(PaCA(r=3))
    step(model, optimizer, 0)
    want = model(batch(1)[0])
    lora = adapted.to_lora()
    assert {B.shape[1] for B, A in lora.factors.values()} == {3}
    for n, (B, A) in lora.factors.items():
        W = net().get_submodule(n).weight
        torch.testing.assert_close(W + B @ A, weights(adapted)[n])
    assert want.isfinite().all()


# ---- where else


def test_a_rule_acts_inside_a_wrapper():
    model, adapted, optimizer = start(DoRA(LIFT(k=1, f=3, every=2)))
    first = {n: e.get("I").clone() for n, e in adapted.entries().items()}
    step(model, optimizer, 0)
    assert all(torch.equal(first[n], e.get("I")) for n, e in adapted.entries().items())
    step(model, optimizer, 1)
    assert any(not torch.equal(first[n], e.get("I")) for n, e in adapted.entries().items())


def test_the_gradient_of_a_tied_weight_is_that_of_both_ends():
    ids = torch.arange(24).reshape(2, 12)
    model, twin = tiny_model(), tiny_model()
    adapted = deltaw.attach(model, Plan(SHiRA(r=1, mask="grad"), targets=["embed_tokens", "lm_head"]))
    optimizer = adapted.optimizer(lr=LR)
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    twin(ids, labels=ids).loss.backward()
    (entry,) = adapted.entries().values()
    G = twin.model.embed_tokens.weight.grad.mT.abs().flatten()
    assert set(entry.get("I").tolist()) == set(G.topk(len(entry.get("I"))).indices.tolist())


# ---- resuming a run


@pytest.mark.parametrize("method", [
    {"key": "lift", "k": 1, "f": 3, "every": 2}, {"key": "losia", "p": 0.25, "T": 2},
    {"key": "lt_sft", "keep": 0.05, "steps": 2}, {"key": "lt_sft", "keep": 0.05, "steps": 5},
    {"key": "shira", "r": 1, "mask": "snip", "steps": 4}, {"key": "paca", "r": 2, "columns": "gradient", "steps": 2},
], ids=lambda m: "-".join(map(str, m.values())))  # fmt: skip
def test_six_steps_are_three_and_three(tmp_path, method):
    from deltaw.train import run

    recipe = {
        "data": {"path": jsonl(tmp_path / "d.jsonl", pairs())},
        "plan": {"method": method, "targets": ["q_proj", "down_proj"]},
        "train": {"steps": 6, "batch_size": 2, "grad_accum": 2, "save_every": 3, "keep": 5, "tune_allocator": False},
    }

    def go(out, **kw):
        data = {**recipe, "out": str(tmp_path / out)}
        return run(data, model=tiny_model(), tokenizer=tiny_tokenizer(), progress=False, **kw).adapted.state()

    want = go("whole")
    (tmp_path / "cut").mkdir()
    (tmp_path / "whole" / "checkpoint-3").rename(tmp_path / "cut" / "checkpoint-3")
    got = go("cut", resume=True)
    assert all(torch.equal(t, want[name]) for name, t in got.items()) and got.keys() == want.keys()


LAUNCHED = """
import json, sys
sys.path.insert(0, {here!r})
from train_kit import tiny_model, tiny_tokenizer
from deltaw.train import run
if __name__ == "__main__":
    run(json.load(open({recipe!r})), model=tiny_model(), tokenizer=tiny_tokenizer(), progress=False)
"""


def test_two_processes_choose_what_one_does(tmp_path):
    """Gradients that rules look at are averaged over the processes, as DDP does with those of what is trained."""
    from deltaw.train import run

    here = Path(__file__).parent
    recipe = {
        "data": {"path": jsonl(tmp_path / "d.jsonl", pairs())}, "out": str(tmp_path / "both"),
        "plan": {"method": {"key": "losia", "p": 0.25, "T": 2}, "targets": ["q_proj", "down_proj"]},
        "train": {"steps": 6, "batch_size": 2, "tune_allocator": False, "sort_by_length": False},
    }  # fmt: skip
    (tmp_path / "r.json").write_text(json.dumps(recipe))
    (tmp_path / "go.py").write_text(LAUNCHED.format(here=str(here), recipe=str(tmp_path / "r.json")))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv_backend=c10d",
              "--rdzv_endpoint=localhost:0", str(tmp_path / "go.py")]  # fmt: skip
    path = f"{here.parent / 'src'}:{os.environ.get('PYTHONPATH', '')}"
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    done = subprocess.run(launch, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    lone = run(recipe | {"out": str(tmp_path / "lone")}, ["train.batch_size=4"], model=tiny_model(),
               tokenizer=tiny_tokenizer(), progress=False).adapted.state()  # fmt: skip
    both = deltaw.load(tiny_model(), tmp_path / "both" / "adapter").state()
    assert any(len(t) for name, t in lone.items() if name.endswith("I0"))
    for name, t in lone.items():
        torch.testing.assert_close(both[name], t, rtol=1e-3, atol=1e-5)


def test_a_rule_that_needs_the_gradient_refuses_what_has_none():
    model = nn.Sequential(nn.Conv1d(4, 6, 3))
    adapted = deltaw.attach(model, Plan(SHiRA(r=1, mask="grad"), targets=["0"]))
    with pytest.raises(SpecError, match="0: a rule asks for the gradient of the weight of a conv"):
        adapted.optimizer(lr=LR)
