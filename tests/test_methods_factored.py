"""What is particular to Block-LoRA, CapaBoost, DropLoRA, Hydra, LoRA-FA, NoRA, ResLoRA, RoseLoRA, S2-LoRA, SingLoRA,
SNELL and SNELLA, beyond the laws."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import deltaw
from deltaw import Plan, attach
from deltaw.errors import ShapeError, SpecError
from deltaw.methods import (
    SNELL,
    SNELLA,
    BlockLoRA,
    CapaBoost,
    DoRA,
    DropLoRA,
    Hydra,
    LoRA,
    LoRAFA,
    NoRA,
    ResLoRA,
    RoseLoRA,
    S2LoRA,
    SingLoRA,
)  # fmt: skip
from deltaw.methods.rules.allocate import Allocate, shares
from deltaw.methods.rules.lora_fa import ProjectedGradient
from deltaw.methods.rules.row_sparsity import RowSparsity
from deltaw.methods.rules.shrink import Shrink
from deltaw.ops import Base
from deltaw.testing.tiny import Tiny, settle, values

F64 = torch.float64


class Net(nn.Module):
    def __init__(self, m: int = 24, n: int = 16, bias: bool = True, layers: int = 1):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(n, m, bias=bias) for _ in range(layers)])

    def forward(self, x):
        return sum(layer(x) for layer in self.layers)


def put(method, m=24, n=16, bias=True, layers=1, shake=True, **kw):
    """(model, adapted, the tensors of the first layer by name, x) in float64."""
    net = settle(Net(m, n, bias, layers), F64)
    adapted = attach(net, Plan(method, **kw))
    if shake:
        with torch.no_grad():
            for name, t in adapted.trainable().items():
                t.copy_(values(*t.shape, name=name, std=0.5))
    p = adapted.entries()["layers.0"].tensors({})
    return net, adapted, {k: getattr(p, k) for k in p.names()}, values(8, n, name="x")


def changes(adapted):
    """The change of every weight, by site."""
    model = adapted.model
    return {n.removesuffix(".weight"): (w - model.get_parameter(n)).detach() for n, w in adapted.merge().changed() if "weight" in n}


def rank(w):
    return int(torch.linalg.matrix_rank(w, rtol=1e-9))


def step(net, optimizer, x, aim="aim"):
    loss = (net(x) - values(len(x), 24, name=aim)[:, : net(x).shape[1]]).square().sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


# ---- SingLoRA


def test_singlora_ramps_with_optimiser_steps_and_goes_on_after_loading(tmp_path):
    net, adapted, p, x = put(SingLoRA(r=2, T=4), shake=False)
    base, optimizer = net(x), adapted.optimizer(lr=1e-2)
    for _ in range(3):  # micro-batches and evaluations do not count
        net(x).square().sum().backward()
    assert float(p["u"]) == 0.0 and float(p["A"].grad.abs().max()) == 0.0
    optimizer.step()
    assert float(p["u"]) == 0.25 and not torch.equal(net(x), base)
    adapted.save(tmp_path)
    again = deltaw.load(fresh := settle(Net(), F64), tmp_path)
    u = again.state()["layers.0.u"]
    assert torch.equal(fresh(x), net(x)) and float(u) == 0.25
    other, seen = again.optimizer(lr=1e-2), []
    for _ in range(5):
        step(fresh, other, x)
        seen.append(float(u))
    assert seen == [0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("T", [3, 7, 100, 999])
def test_singlora_reaches_one_exactly(T):
    net, adapted, p, x = put(SingLoRA(r=1, T=T))
    optimizer = adapted.optimizer(lr=0.0)
    for t in range(1, T + 1):
        net(x[:1]).sum().backward()
        optimizer.step()
        assert abs(float(p["u"]) - t / T) < 1e-12
    assert float(p["u"]) == 1.0


def test_singlora_is_symmetric_and_positive_where_it_is_square():
    _, adapted, p, _ = put(SingLoRA(r=3), m=16)
    with torch.no_grad():
        p["u"].fill_(1.0)
    change = changes(adapted)["layers.0"]
    torch.testing.assert_close(change, change.mT)
    assert float(torch.linalg.eigvalsh(change).min()) > -1e-12 and rank(change) == 3


@pytest.mark.parametrize("m, n", [(24, 16), (12, 16)])
def test_singlora_does_not_depend_on_the_basis_of_a(m, n):
    """A and A Q, Q orthogonal, give the same change, before and after a step of SGD."""
    found = []
    for turn in (torch.eye(3, dtype=F64), torch.linalg.qr(values(3, 3, name="Q")).Q):
        net, adapted, p, x = put(SingLoRA(r=3), m=m, n=n)
        with torch.no_grad():
            p["u"].fill_(0.5)
            p["A"].copy_(p["A"] @ turn)
        before = changes(adapted)["layers.0"]
        net(x).square().sum().backward()
        with torch.no_grad():
            p["A"] -= 1e-3 * p["A"].grad
        found.append((before, changes(adapted)["layers.0"]))
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


# ---- Block-LoRA


def test_block_lora_arms_stay_equal_and_step_k_times_as_far():
    net, adapted, p, x = put(BlockLoRA(r=8, k=4, alpha=8.0), shake=False)
    optimizer = adapted.optimizer(lr=1e-2)
    for _ in range(3):
        step(net, optimizer, x)
    assert all(torch.equal(arm, p["B"][0]) for arm in p["B"]) and float(p["B"].detach().abs().min()) > 0
    assert rank(changes(adapted)["layers.0"]) == 2
    moved = []
    for method in (BlockLoRA(r=8, k=4, alpha=8.0), LoRA(r=2, alpha=2.0)):  # both have s = 1
        net, adapted, p, x = put(method, shake=False)
        with torch.no_grad():
            p["A"].copy_(values(2, 16, name="A"))
        step(net, torch.optim.SGD(adapted.trainable().values(), lr=1e-4), x)
        moved.append(p["B"].sum(0) if p["B"].dim() == 3 else p["B"])
    torch.testing.assert_close(moved[0], 4 * moved[1])


def test_block_lora_refuses_what_does_not_divide():
    with pytest.raises(ShapeError, match="k = 3 must divide r = 8"):
        put(BlockLoRA(r=8, k=3))


# ---- Hydra


def test_hydra_alone_on_either_side():
    _, adapted, p, _ = put(Hydra(r_p=3, r_s=0), bias=False)
    twin, lora, q, x = put(LoRA(r=3, alpha=3.0), bias=False)
    with torch.no_grad():
        q["A"].copy_(p["A_p"]), q["B"].copy_(p["B_p"])
    torch.testing.assert_close(changes(adapted)["layers.0"], changes(lora)["layers.0"])
    net, adapted, p, _ = put(Hydra(r_p=0, r_s=3), m=16, n=24, bias=False)
    with torch.no_grad():  # a W of rank 5: the change can only recombine its rows
        w = net.layers[0].weight
        w.copy_(values(16, 5, name="l") @ values(5, 24, name="r"))
    change = changes(adapted)["layers.0"]
    assert rank(torch.cat([change, w.detach()])) == 5 and rank(torch.cat([change, p["B_s"].detach()], 1)) == 3 == rank(change)
    with pytest.raises(SpecError, match="not both 0"):
        put(Hydra(r_p=0, r_s=0))


def test_hydra_exports_exactly_and_calls_the_base_once(monkeypatch):
    net, adapted, _, x = put(Hydra(r_p=2, r_s=3), bias=False)
    lora = adapted.to_lora()
    assert lora.rank == 5
    B, A = lora.factors["layers.0"]
    torch.testing.assert_close(B @ A, changes(adapted)["layers.0"])
    (leaf,) = {type(a.site.leaf().op) for a in adapted.assignments}
    calls, true = [], leaf.__call__
    assert issubclass(leaf, Base)
    monkeypatch.setattr(leaf, "__call__", lambda self, x: (calls.append(1), true(self, x))[1])
    net(x)
    assert len(calls) == 1


# ---- CapaBoost


def test_capaboost_masks_follow_from_seed_and_site(tmp_path):
    method = CapaBoost(r=4, d=2)
    _, adapted, p, _ = put(method, layers=2)
    state = adapted.state()
    assert not torch.equal(p["MA"][0], p["MA"][1]) and not torch.equal(p["MB"][0], p["MB"][1])
    assert not torch.equal(state["layers.0.MA"], state["layers.1.MA"])
    for other, equal in ((Plan(method, seed=5), True), (CapaBoost(r=4, d=2, seed=1), False)):
        again = attach(settle(Net(layers=2), F64), other).state()
        assert torch.equal(again["layers.1.MB"], state["layers.1.MB"]) == equal
    adapted.save(tmp_path)
    assert not any(".M" in k for k in load_file(tmp_path / "adapter_model.safetensors"))
    assert "layers.0.MA" in json.load(open(tmp_path / "deltaw.json"))["seeded"]


@pytest.mark.parametrize("mask", ["random", "2:4"])
def test_capaboost_counts_rank_and_gradient(mask):
    net, adapted, p, x = put(CapaBoost(r=4, d=3, alpha=4.0, mask=mask))
    assert p["MA"].flatten(1).sum(1).tolist() == [32] * 3 and p["MB"].flatten(1).sum(1).tolist() == [48] * 3
    if mask == "2:4":
        assert all(int(g) == 2 for g in torch.cat([p["MA"].reshape(-1, 4), p["MB"].reshape(-1, 4)]).sum(1))
    assert rank(changes(adapted)["layers.0"]) == 12 == adapted.to_lora().rank
    net(x).square().sum().backward()
    copies = [(p["A"].detach().clone().requires_grad_(), p["B"].detach().clone().requires_grad_()) for _ in range(3)]
    y = nn.functional.linear(x, net.layers[0].weight, net.layers[0].bias)
    for (A, B), MA, MB in zip(copies, p["MA"], p["MB"]):  # the authors' rule: tied copies, masked gradients, summed
        y = y + x @ (A * MA).mT @ (B * MB).mT
    y.square().sum().backward()
    torch.testing.assert_close(p["A"].grad, sum(A.grad * MA for (A, _), MA in zip(copies, p["MA"])))
    torch.testing.assert_close(p["B"].grad, sum(B.grad * MB for (_, B), MB in zip(copies, p["MB"])))


def test_capaboost_without_holes_is_d_times_lora():
    _, adapted, p, _ = put(CapaBoost(r=3, d=2, alpha=3.0, density=1.0))
    torch.testing.assert_close(changes(adapted)["layers.0"], 2 * (p["B"] @ p["A"]).detach())
    for bad in (CapaBoost(density=0.0), CapaBoost(mask="2:4", density=0.3)):
        with pytest.raises(SpecError, match="density"):
            put(bad)
    with pytest.raises(ShapeError, match="2:4"):
        put(CapaBoost(r=4, mask="2:4"), n=18)


# ---- DropLoRA


@pytest.mark.parametrize("r, tokens", [(2, 64), (12, 64)])  # 12: a fused path would rather build the matrix
def test_droplora_draws_for_every_token_and_its_mean_is_evaluation(r, tokens):
    net, adapted, p, _ = put(DropLoRA(r=r, alpha=float(r), p=0.25))
    x = values(1, 16, name="one").expand(tokens * 100, 16)
    with torch.no_grad():
        base = nn.functional.linear(x[:1], net.layers[0].weight, net.layers[0].bias)
        whole = net(x[:tokens]) - base
        net.train()
        torch.manual_seed(0)
        drawn = torch.cat([net(part) - base for part in x.split(tokens)])
    z = (x[0] @ p["A"].mT).detach()
    kinds = torch.linalg.lstsq(p["B"].detach(), drawn.mT).solution.mT / z  # what every token multiplied A x with
    kept = kinds.round(decimals=6).unique().tolist()
    assert kept[0] == 0.0 and len(kept) == 2 and abs(kept[1] - 1 / 0.75) < 1e-3
    assert abs(float((kinds > 0.5).double().mean()) - 0.75) < 0.02 and len(kinds.round().unique(dim=0)) > min(r, 3)
    torch.testing.assert_close(drawn.mean(0), whole[0], rtol=0, atol=0.1 * float(whole.abs().max()))
    spread = ((kinds - 1.0) ** 2).mean()
    assert abs(float(spread) - 0.25 / 0.75) < 0.02


def test_droplora_without_dropout_and_refusals():
    net, adapted, p, x = put(DropLoRA(r=3, alpha=3.0, p=0.0))
    y = net(x)
    assert torch.equal(net.train()(x), y)
    torch.testing.assert_close(changes(adapted)["layers.0"], (p["B"] @ p["A"]).detach())
    with pytest.raises(SpecError, match="p of"):
        put(DropLoRA(p=1.0))
    grouped = nn.Sequential(nn.Conv1d(4, 4, 1, groups=2))
    with pytest.raises(SpecError, match="grouped"):
        attach(grouped, Plan(DropLoRA(r=1), targets=["0"]))


# ---- LoRA-FA


def test_projected_gradient_moves_the_weight_by_the_projection():
    """-lr G Aᵀ(A Aᵀ)⁻¹A, whatever s and the size of A; A is left alone to the bit."""
    for alpha, size in ((3.0, 1.0), (12.0, 0.2)):
        net, adapted, p, x = put(LoRAFA(r=3, alpha=alpha), rules=[ProjectedGradient()])
        with torch.no_grad():
            p["A"].mul_(size), p["B"].zero_()
        A = p["A"].clone()
        optimizer = adapted.optimizer(lr=1e-3)
        for group in optimizer.param_groups:
            group.update(lr=0.0)  # the rule is looked at, Adam is not
        y = net(x)
        y.retain_grad()
        y.square().sum().backward()
        optimizer.step()
        moved = -1e-3 * alpha / 3 * p["B"].grad @ A
        P = A.mT @ torch.linalg.solve(A @ A.mT, A)
        torch.testing.assert_close(moved, -1e-3 * y.grad.mT @ x @ P, rtol=1e-5, atol=1e-7)
        assert torch.equal(p["A"], A)
    net, adapted, _, x = put(LoRA(r=2), rules=["lora_fa"])
    net(x).sum().backward()
    with pytest.raises(SpecError, match="frozen A"):
        adapted.optimizer(lr=1e-3).step()


def test_lora_fa_keeps_no_input():
    def keeps_it(method):
        net, _, _, x = put(method)
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.data_ptr()), t)[1], lambda t: t):
            net(x).sum()
        return x.data_ptr() in kept

    assert not keeps_it(LoRAFA(r=2)) and keeps_it(LoRA(r=2))


# ---- NoRA


def test_nora_stays_in_the_frame():
    net, adapted, p, _ = put(NoRA(r=5, q=2))
    change, (U, _, Vh) = changes(adapted)["layers.0"], torch.linalg.svd(net.layers[0].weight.detach(), full_matrices=False)
    torch.testing.assert_close(U[:, :5] @ U[:, :5].mT @ change, change)
    torch.testing.assert_close(change @ Vh[:5].mT @ Vh[:5], change)
    assert rank(change) == 2 == adapted.to_lora().rank
    with pytest.raises(ShapeError, match="q <= r <= 16"):
        put(NoRA(r=17, q=2))


# ---- S2-LoRA


def test_s2_lora_shares_its_pair_within_a_shape():
    net, adapted, p, x = put(S2LoRA(r=4), layers=2)
    assert [k for k in adapted.trainable() if "layers" not in k] == ["24x16.A", "24x16.B"]
    model = settle(Tiny(), F64)
    assert {k for k in attach(model, S2LoRA(r=4)).trainable() if "blocks" not in k} == {f"{s}.{w}" for s in ("16x16", "24x16") for w in "AB"}
    state = adapted.state()
    net(x).square().sum().backward()
    s, G = 32.0 / 4, 2 * net(x).detach().mT @ x
    both = sum(state[f"layers.{k}.l"][:, None] * (state["24x16.B"].mT @ G) for k in (0, 1))
    torch.testing.assert_close(state["24x16.A"].grad, s * both)
    before = changes(adapted)
    with torch.no_grad():
        p["l"].copy_(torch.tensor([0.0, 2.0, 0.0, -1.0]))
    after = changes(adapted)
    assert torch.equal(before["layers.1"], after["layers.1"]) and rank(after["layers.0"]) == 2 and rank(after["layers.1"]) == 4


def test_s2_lora_shrinks_to_exact_zeros():
    """One useful rank, the others without effect: they end at exact zeros, the useful one does not."""
    net, adapted, p, x = put(S2LoRA(r=4, shrink=1e-3))
    state = adapted.state()
    with torch.no_grad():
        state["24x16.B"][:, 1:] = 0.0
        p["l"].copy_(torch.tensor([0.5, 0.002, -0.0035, 0.05]))
    state["24x16.A"].requires_grad_(False), state["24x16.B"].requires_grad_(False)
    optimizer = adapted.optimizer(lr=1e-4)
    for _ in range(4):
        step(net, optimizer, x)
    first, *others = p["l"].tolist()
    assert first > 0.4 and others[:2] == [0.0, 0.0] and abs(others[2] - 0.046) < 1e-9
    with pytest.raises(SpecError, match="no 'l'"):
        net, adapted, _, x = put(LoRA(r=2), rules=[Shrink(tensor="l", by=0.1)])
        step(net, adapted.optimizer(lr=1e-3), x)


# ---- SNELL


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9])
def test_snell_keeps_its_share_of_the_entries(sparsity):
    _, adapted, p, _ = put(SNELL(q=8, sparsity=sparsity))
    change = changes(adapted)["layers.0"]
    assert int((change != 0).sum()) == 24 * 16 - int(sparsity * 24 * 16)
    K = 0.1 * (torch.cdist(p["Q"][0], p["P"][0]) - torch.cdist(p["Q"][1], p["P"][1])).detach()
    there = change != 0
    torch.testing.assert_close(change[there], (K * K.abs())[there], rtol=1e-5, atol=1e-9)
    assert float(K[there].abs().min()) >= float(K[~there].abs().max() if sparsity else 0.0)
    assert sparsity == 0.9 or rank(change) == 16
    for bad, why in ((SNELL(q=3), "even q"), (SNELL(sparsity=1.0), "fraction")):
        with pytest.raises(SpecError, match=why):
            put(bad)


@pytest.mark.parametrize("kept", [0, 1, 100, 383, 384])
def test_snella_keeps_as_many_as_its_number_says(kept):
    _, adapted, p, _ = put(SNELLA(q=4))
    with torch.no_grad():
        p["a"].fill_(0.5), p["gamma"].fill_(0.2), p["c"].fill_(-0.01), p["V"].fill_(kept)
        D = 0.1 * (torch.cdist(p["Q"][0], p["P"][0]) - torch.cdist(p["Q"][1], p["P"][1]))
        K = D + 0.5 * (D / 0.2).softmax(0) - 0.01
    change = next(iter(changes(adapted).values()), torch.zeros(24, 16, dtype=F64))
    want = torch.where(K.abs() >= K.abs().flatten().sort().values.flip(0)[kept - 1], K * K.abs(), 0.0) if kept else 0 * K
    assert int((change != 0).sum()) == kept
    torch.testing.assert_close(change, want, rtol=1e-5, atol=1e-9)


def test_snella_shares_its_budget_by_importance():
    """Three layers, one of which the loss does not see: it gives its entries up, and the sum is the budget."""
    method = SNELLA(q=4, sparsity=0.5, every=2, T=3)
    net, adapted, _, x = put(method, layers=3)
    optimizer, state, scores = adapted.optimizer(lr=1e-3), adapted.state(), {}
    budget, seen = {1: 1 - 0.5 * (1 - (2 / 3) ** 3), 2: 1 - 0.5 * (1 - (1 / 3) ** 3), 3: 0.5}, []
    for t in range(1, 9):
        optimizer.zero_grad()
        (net.layers[0](x).square().sum() + 0.3 * net.layers[1](x).square().sum()).backward()
        for name in ("layers.0", "layers.1"):
            for k in "PQ":
                new = (state[f"{name}.{k}"] * state[f"{name}.{k}"].grad).abs().detach()
                A, U = scores.get((name, k), (0 * new, 0 * new))
                A = 0.85 * A + 0.15 * new
                scores[name, k] = A, 0.85 * U + 0.15 * (new - A).abs()
        optimizer.step()
        V = [int(state[f"layers.{i}.V"]) for i in range(3)]
        if t % 2 == 0 and t <= 6:
            e = int(budget[t // 2] * 3 * 384)
            assert sum(V) == e
            s = [sum(float((A * U).mean()) for (n, _), (A, U) in scores.items() if n == f"layers.{i}") for i in (0, 1)]
            much, less = (0, 1) if s[0] > s[1] else (1, 0)
            most = min(384.0, e * s[much] / sum(s))
            assert abs(V[much] - most) <= 1 and abs(V[less] - min(384.0, e - most)) <= 1 and abs(V[2] - max(e - 768, 0)) <= 1
        seen.append(V)
    assert seen[0] == [384] * 3 and seen[5] == seen[7] and seen[5][2] < seen[5][1]


def test_shares_are_whole_proportional_and_exact():
    room = torch.tensor([10, 10, 100])
    assert shares(torch.tensor([1.0, 1.0, 2.0]), 20, room).tolist() == [5, 5, 10]
    assert shares(torch.tensor([8.0, 1.0, 1.0]), 20, room).tolist() == [10, 5, 5]  # what does not fit goes to the others
    assert shares(torch.tensor([1.0, 0.0, 0.0]), 40, room).tolist() == [10, 10, 20]  # no score is left: equal parts
    assert shares(torch.zeros(3), 30, room).tolist() == [10, 10, 10]
    for budget in (0, 1, 7, 50, 119, 120):
        got = shares(torch.tensor([0.3, 1e-9, 0.7]), budget, room)
        assert int(got.sum()) == budget and bool((got <= room).all()) and int(got.min()) >= 0


def test_allocation_schedule():
    rule = Allocate(sparsity=0.4, T=10, t0=2, t1=3)
    assert [rule.dropped(e) for e in (0, 1, 2)] == [0.0] * 3 and [rule.dropped(e) for e in (7, 8, 10)] == [0.4] * 3
    assert abs(rule.dropped(4) - 0.4 * (1 - 0.6**3)) < 1e-12
    with pytest.raises(SpecError, match="fraction"):
        put(SNELLA(sparsity=1.0))


# ---- RoseLoRA


def test_roselora_prunes_rows_and_columns_by_importance():
    method = RoseLoRA(r=3, alpha=3.0, kappa=0.25, t_i=2, t_f=6)
    net, adapted, p, x = put(method)
    optimizer = adapted.optimizer(lr=1e-2)
    score, seen = {}, []
    for t in range(1, 9):
        net.zero_grad()
        (net(x) - values(8, 24, name="aim")).square().sum().backward()
        for k in "AB":
            new = (p[k] * p[k].grad).abs().detach()
            score[k] = new if t == 1 else 0.8 * score[k] + 0.2 * new
        optimizer.step()
        zero = {k: p[k] == 0 for k in "AB"}
        drop = 1 - RowSparsity(0.25, 2, 6).kept(t)
        for k, dim, size in (("A", 1, 16), ("B", 0, 24)):
            gone = max(int(size * drop) - 1, 0)  # the entry at the threshold stays
            assert zero[k].sum(dim).tolist() == [gone] * 3, (t, k)
            order = score[k].argsort(dim)
            lowest = torch.zeros_like(zero[k]).scatter(dim, order.narrow(dim, 0, gone), True)
            assert torch.equal(lowest, zero[k]), (t, k)
        seen.append(torch.cat([zero["A"].flatten(), zero["B"].flatten()]))
    share = [(1 - zero["A"][i].double().mean()) * (1 - zero["B"][:, i].double().mean()) for i in range(3)]
    filled = float((changes(adapted)["layers.0"] != 0).double().mean())
    assert 0 < filled <= float(sum(share)) + 1e-12
    assert not any(bool((a & ~b).any()) for a, b in zip(seen, seen[1:])), "an entry at zero has no score to come back with"


def test_roselora_schedule():
    kept = [RowSparsity(kappa=0.05, t_i=3, t_f=20).kept(t) for t in range(30)]
    assert kept[:4] == [1.0] * 4 and kept[20:] == [0.05] * 10 and kept == sorted(kept, reverse=True)
    assert abs(kept[10] - (0.05 + 0.95 * (10 / 17) ** 3)) < 1e-12
    for bad in (RoseLoRA(kappa=0.0), RoseLoRA(t_i=9, t_f=3)):
        with pytest.raises(SpecError, match="roselora needs"):
            put(bad)


# ---- ResLoRA


def test_reslora_adds_the_pairs_of_the_layers_before():
    for pre_num in (-1, 0, 1):
        net, adapted, _, x = put(ResLoRA(r=2, alpha=4.0, pre_num=pre_num), layers=3)
        state, change = adapted.state(), changes(adapted)
        assert sum(t.numel() for t in adapted.trainable().values()) == 3 * 2 * (24 + 16)
        for k in range(3):
            seen = range(0 if pre_num < 0 else max(0, k - pre_num), k + 1)
            want = sum(2.0 * state[f"layers.*.24x16.B{i}"] @ state[f"layers.*.24x16.A{i}"] for i in seen)
            torch.testing.assert_close(change[f"layers.{k}"], want.detach())
            assert adapted.to_lora().factors[f"layers.{k}"][1].shape[0] == 2 * len(seen)
        net(x).square().sum().backward()
        G = 2 * net(x).detach().mT @ x  # all three layers see the same gradient here
        times = {-1: 3, 0: 1, 1: 2}[pre_num]
        torch.testing.assert_close(state["layers.*.24x16.B0"].grad, times * 2.0 * G @ state["layers.*.24x16.A0"].mT)


def test_reslora_chains_are_of_one_name_shape_and_method(tmp_path):
    model = settle(Tiny(), F64)
    adapted = attach(model, Plan(ResLoRA(r=2)))
    assert sorted({k.rpartition(".")[0] for k in adapted.state()}) == ["blocks.*.sq.16x16", "blocks.*.up.24x16"]
    first = attach(settle(Net(layers=3), F64), Plan(ResLoRA(r=2), layers=[1, 2])).state()  # layer 0 has no pair here
    assert sorted(first) == [f"layers.*.24x16.{w}{k}" for w in "AB" for k in (0, 1)]
    ranks = attach(settle(Net(layers=3), F64), Plan(ResLoRA(r=2), overrides={"layers.1": {"r": 3}}))
    assert ranks.state()["layers.*.24x16.A0"].shape == (3, 16)
    with torch.no_grad():
        for name, t in adapted.trainable().items():
            t.copy_(values(*t.shape, name=name))
    x = values(4, 16, name="x")
    adapted.save(tmp_path)
    deltaw.load(again := settle(Tiny(), F64), tmp_path)
    assert torch.equal(again(x), model(x))


def test_reslora_says_why_the_other_shortcuts_are_refused():
    for word in ("is", "ms"):
        with pytest.raises(SpecError, match="activations of other layers"):
            put(ResLoRA(shortcut=word))


# ---- together


def test_dora_over_methods_with_rules():
    net, adapted, _, x = put(DoRA(SingLoRA(r=2, T=2)), shake=False)
    optimizer = adapted.optimizer(lr=1e-2)
    losses = [step(net, optimizer, x) for _ in range(6)]
    assert float(adapted.state()["layers.0.u"]) == 1.0 and losses[-1] < losses[0]
