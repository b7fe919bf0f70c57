"""What is particular to LoRA, DoRA, Drop, VeRA, LoHa, LoKr, ABBA, HiRA, GraLoRA and SHiRA, beyond the laws."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

from deltaw import Plan, activate, attach
from deltaw.errors import ShapeError, SpecError
from deltaw.fused.dropout import draw, mask, masked, noise
from deltaw.methods import ABBA, HRA, DoRA, Drop, GraLoRA, HiRA, LoHa, LoKr, LoRA, RsLoRA, SHiRA, VeRA
from deltaw.methods.structure.lokr import factorization
from deltaw.methods.structure.shira import Sparse
from deltaw.ops import Chain, Hadamard, factors, row_norm

M, N = 24, 16


class Net(nn.Module):
    def __init__(self, lin: nn.Module):
        super().__init__()
        self.lin = lin

    def forward(self, x):
        return self.lin(x)


def put(method, module=None, seed=0, random=True, **kw):
    """(model, adapted, tensors by name, x): one adapted layer in float64 with random tensors."""
    torch.manual_seed(seed)
    net = Net(module if module is not None else nn.Linear(N, M)).double().eval()
    adapted = attach(net, Plan(method, targets=["lin"], **kw))
    if random:
        shake(adapted)
    p = adapted.entries()["lin"].tensors({})
    return net, adapted, {k: getattr(p, k) for k in p.names()}, torch.randn(5, N).double()


def shake(adapted, std=0.5):
    with torch.no_grad():
        for t in adapted.state().values():
            if t.is_floating_point():
                t.normal_(0.0, std)


def change(adapted):
    (name, new), *_ = adapted.merge().changed()
    return (new - adapted.model.get_parameter(name)).detach()


def rank(w):
    return int(torch.linalg.matrix_rank(w, rtol=1e-9))


# ---- scales


def test_lora_fades_with_r_and_rslora_does_not():
    torch.manual_seed(0)
    x, size = torch.randn(400, 64).double(), {}
    for cls in (LoRA, RsLoRA):
        for r in (4, 64):
            A, B = torch.randn(r, 64).double(), torch.randn(64, r).double()
            size[cls, r] = float((cls(r=r).scale * x @ A.T @ B.T).pow(2).mean().sqrt())
    assert size[LoRA, 4] / size[LoRA, 64] == pytest.approx(4.0, rel=0.1)  # alpha / sqrt r
    assert size[RsLoRA, 4] / size[RsLoRA, 64] == pytest.approx(1.0, rel=0.1)


def test_scales_are_the_papers():
    assert LoHa(r=4, alpha=2.0).scale == LoKr(r=4, alpha=2.0).scale == 0.5
    assert GraLoRA(r=6, hybrid_r=2, alpha=4.0).scale == 0.5
    assert ABBA(r1=4, r2=9, alpha=3.0).scale == 1.5
    assert ABBA().scale == ABBA().alpha  # where paper and code agree: alpha = r1 = r2


# ---- VeRA


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(16, 24), nn.Linear(40, 16)

    def forward(self, x):
        return self.a(x).sum() + self.b(x.repeat(1, 3)[:, :40]).sum()


def test_vera_shares_one_frozen_pair_as_large_as_the_largest_site():
    net = Two()
    adapted = attach(net, Plan(VeRA(r=8, seed=3), targets=["a", "b"]))
    state = adapted.state()
    A, B = state["model.A"], state["model.B"]
    assert A.shape == (8, 40) and B.shape == (24, 8)
    a, b = (adapted.entries()[k].tensors({}) for k in "ab")
    assert a.A.data_ptr() == b.A.data_ptr() == A.data_ptr() and a.A.shape == (8, 16) and b.B.shape == (16, 8)  # views
    bound = (6 / 40) ** 0.5  # the fan-in of the shared tensor, at the narrow site too
    assert 0.9 * bound < a.A.abs().max() <= bound
    assert B.abs().max() <= (6 / 8) ** 0.5
    assert sum(t.numel() for t in adapted.trainable().values()) == (24 + 8) + (16 + 8)
    net(torch.randn(2, 16)).backward()
    assert A.grad is None and B.grad is None and not A.requires_grad
    assert all(t.grad is not None for t in adapted.trainable().values())


def test_vera_is_made_from_its_seed_alone():
    pairs = []
    for seed, plan_seed in ((1, 0), (1, 7), (2, 0)):
        adapted = attach(Two(), Plan(VeRA(r=8, seed=seed), targets=["a", "b"], seed=plan_seed))
        pairs.append(adapted.state()["model.A"])
    assert torch.equal(pairs[0], pairs[1]) and not torch.equal(pairs[0], pairs[2])


# ---- LoHa, ABBA: Khatri-Rao


def test_khatri_rao_factors_are_the_entrywise_product():
    net, adapted, p, x = put(ABBA(r1=2, r2=3))
    B = torch.stack([p["B1"][:, i] * p["B2"][:, j] for i in range(2) for j in range(3)], 1)
    A = torch.stack([p["A1"][i] * p["A2"][j] for i in range(2) for j in range(3)], 0)
    assert torch.allclose(B @ A, (p["B1"] @ p["A1"]) * (p["B2"] @ p["A2"]), atol=1e-12)
    (got_B, got_A), s = adapted.to_lora().factors["lin"], ABBA(r1=2, r2=3).scale
    assert torch.allclose(got_B @ got_A, s * B @ A, atol=1e-12)


@pytest.mark.parametrize("method, expected", [(LoHa(r=3), 9), (ABBA(r1=2, r2=3), 6)])
def test_generic_rank_is_the_product_of_the_ranks(method, expected):
    _, adapted, _, _ = put(method)
    assert rank(change(adapted)) == adapted.to_lora().rank == expected


def test_hadamard_takes_the_cheaper_of_its_two_ways_and_both_agree():
    torch.manual_seed(0)
    ways = set()
    for m, n, r1, r2 in ((24, 16, 2, 2), (6, 6, 5, 5)):
        t = [torch.randn(*s).double() for s in ((m, r1), (r1, n), (m, r2), (r2, n))]
        op = Hadamard(Chain([*map(_dense, t[:2])]), Chain([*map(_dense, t[2:])]))
        x = torch.randn(50, n).double()
        ways.add(op._cheap(50) is None)
        assert torch.allclose(op(x), x @ ((t[0] @ t[1]) * (t[2] @ t[3])).T, atol=1e-11)
    assert ways == {True, False}


def _dense(w):
    from deltaw.ops import Dense

    return Dense(w)


def test_abba_starts_at_the_truncated_svd_and_only_B2_moves_first():
    net, adapted, p, x = put(ABBA(r1=4, r2=4), random=False)
    W = net.lin.weight
    U, S, V = torch.linalg.svd(W.detach(), full_matrices=False)
    assert torch.allclose(p["B1"] @ p["A1"], U[:, :4] * S[:4] @ V[:4], atol=1e-10)
    assert torch.allclose(p["B1"].norm(dim=0), p["A1"].norm(dim=1), atol=1e-10)
    assert p["A2"].abs().max() <= (6 / N) ** 0.5
    net(x).pow(2).sum().backward()
    assert {k for k, t in p.items() if t.grad.abs().sum() > 0} == {"B2"}
    with pytest.raises(ShapeError, match="r1 = 17"):
        attach(Net(nn.Linear(N, M)), Plan(ABBA(r1=17), targets=["lin"]))


def test_loha_starts_with_one_zero_factor_so_that_it_can_leave_it():
    net, adapted, p, x = put(LoHa(r=2), random=False)
    assert {k for k, t in p.items() if not t.any()} == {"A2"}
    net(x).pow(2).sum().backward()
    assert {k for k, t in p.items() if t.grad.abs().sum() > 0} == {"A2"}


# ---- LoKr


@pytest.mark.parametrize(
    "size, factor, parts",
    [(128, -1, (8, 16)), (127, -1, (1, 127)), (256, -1, (16, 16)), (128, 4, (4, 32)), (128, 64, (64, 2)), (250, 8, (5, 50))],
)
def test_lokr_factorization(size, factor, parts):
    assert factorization(size, factor) == parts


def test_lokr_factorization_is_pefts():
    theirs = pytest.importorskip("peft.tuners.lokr.layer").factorization
    assert all(factorization(d, f) == theirs(d, f) for d in range(1, 300) for f in (-1, 1, 2, 3, 4, 8, 12, 64))


@pytest.mark.parametrize("both, r, names", [(False, 1, {"C", "D_b", "D_a"}), (True, 1, {"C_b", "C_a", "D_b", "D_a"}), (True, 8, {"C", "D"})])
def test_lokr_is_a_kronecker_product_of_the_ranks_it_says(both, r, names):
    method = LoKr(r=r, decompose_both=both)
    _, adapted, p, _ = put(method)
    assert set(p) == names
    C, D = (p[k] if k in p else p[f"{k}_b"] @ p[f"{k}_a"] for k in "CD")
    want = method.scale * torch.kron(C, D).detach()
    assert torch.allclose(change(adapted), want, atol=1e-12)
    assert rank(want) == rank(C) * rank(D)
    if rank(want) < min(M, N):
        assert adapted.to_lora().rank == rank(want)


def test_lokr_thresholds_are_strict():
    assert set(LoKr(r=3).params(24, 16)) == {"C", "D"}  # r >= max(6, 4) / 2
    assert set(LoKr(r=2).params(24, 16)) == {"C", "D_b", "D_a"}
    assert "C" in LoKr(r=2, decompose_both=True).params(24, 16)  # r >= max(4, 4) / 2


@pytest.mark.parametrize("method", [LoHa(r=2, alpha=3.0), LoKr(r=1, alpha=2.0)])
def test_on_a_convolution_like_peft(method):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 12, 3, padding=1, stride=2)
    reference = Net(copy.deepcopy(conv))
    net = Net(conv)
    adapted = attach(net, Plan(method, targets=["lin"]))
    shake(adapted)
    p = adapted.entries()["lin"].tensors({})
    cls = peft.LoHaConfig if isinstance(method, LoHa) else peft.LoKrConfig
    wrapped = peft.get_peft_model(reference, cls(r=method.r, alpha=method.alpha, target_modules=["lin"]))
    from deltaw.testing.oracles import oracle

    oracle(method.key).peft(method)[1](wrapped.base_model.model.lin, {k: getattr(p, k).detach() for k in p.names()})
    x = torch.randn(2, 8, 7, 7)
    assert torch.allclose(net(x), wrapped(x), atol=1e-5)


# ---- HiRA


def test_hira_keeps_zeros_and_is_of_full_rank_already_at_r_1():
    lin = nn.Linear(N, M)
    with torch.no_grad():
        lin.weight[::2, ::3] = 0.0
    net, adapted, p, x = put(HiRA(r=2), lin)
    W = next(iter(adapted.merge().changed()))[1]
    assert torch.equal(W == 0, net.lin.weight == 0)
    _, adapted, p, _ = put(HiRA(r=1))
    assert rank(change(adapted)) == min(M, N)
    want = p["B"] * adapted.model.lin.weight * p["A"]  # r = 1: diag(b) W diag(a)
    assert torch.allclose(change(adapted), want, atol=1e-12)


def test_two_hira_adapters_add_their_changes_of_the_same_base():
    net, first, _, x = put(HiRA(r=2))
    one, W = change(first), net.lin.weight.detach().clone()
    second = attach(net, Plan(HiRA(r=3), targets=["lin"]), name="second")
    shake(second)
    with activate(net, ["default", "second"]):
        want = nn.functional.linear(x, W + one + change(second), net.lin.bias)
        assert torch.allclose(net(x), want, atol=1e-12)
    second.detach()
    first.detach()
    assert torch.equal(net.lin.weight, W)


# ---- GraLoRA


def test_gralora_with_one_block_is_lora():
    net, adapted, p, x = put(GraLoRA(r=4, alpha=8.0, k=1))
    other, lora, q, _ = put(LoRA(r=4, alpha=8.0))
    with torch.no_grad():
        q["A"].copy_(p["A"][0])
        q["B"].copy_(p["B"][0])
    assert torch.allclose(net(x), other(x), atol=1e-12)


@pytest.mark.parametrize("k, h", [(1, 0), (2, 0), (2, 3)])
def test_gralora_rank_is_k_r_plus_h_and_its_count_does_not_depend_on_k(k, h):
    _, adapted, _, _ = put(GraLoRA(r=4, k=k, hybrid_r=h))
    assert rank(change(adapted)) == adapted.to_lora().rank == 4 * k + h
    assert sum(t.numel() for t in adapted.trainable().values()) == (4 + h) * (M + N)


def test_gralora_gradient_of_a_block_sees_its_own_inputs_only():
    net, _, p, x = put(GraLoRA(r=4, k=2))
    z = x.clone()
    z[:, : N // 2] *= 1000.0  # an outlier in the first block
    grads = []
    for v in (x, z):
        p["A"].grad = None
        net(v).sum().backward()  # the output's error is the same for both
        grads.append(p["A"].grad.clone())
    assert torch.allclose(grads[0][1], grads[1][1]) and not torch.allclose(grads[0][0], grads[1][0])


def test_gralora_blocks_must_divide():
    for bad in (GraLoRA(r=6, k=4), GraLoRA(r=6, k=3)):
        with pytest.raises(ShapeError, match="must divide"):
            bad.params(24, 16)


# ---- SHiRA


@pytest.mark.parametrize("mask", ["random", "wm"])
def test_shira_changes_its_positions_only(mask):
    net, adapted, p, x = put(SHiRA(r=2, mask=mask))
    K, moved = 2 * (M + N), change(adapted) != 0
    I = p["I"]  # noqa: E741
    assert I.dtype == torch.int64 and len(I) == K == len(set(I.tolist())) and (I[1:] > I[:-1]).all()
    assert torch.equal(moved.flatten().nonzero().squeeze(-1), I) and rank(change(adapted)) > 2
    if mask == "wm":
        size = net.lin.weight.detach().abs().flatten()
        assert size[I].min() >= size[~moved.flatten()].max()


def test_shira_gradient_is_the_gathered_dense_gradient_on_both_ways():
    net, _, p, x = put(SHiRA(r=2))
    for rows in (1, 5):  # gathered, then scattered to a dense matrix
        p["v"].grad = None
        (net(x[:rows]) ** 2).sum().backward()
        w = net.lin.weight.detach() + Sparse(p["I"], p["v"].detach(), (M, N)).dense()
        w.requires_grad_()
        (nn.functional.linear(x[:rows], w, net.lin.bias) ** 2).sum().backward()
        assert torch.allclose(p["v"].grad, w.grad.flatten()[p["I"]], atol=1e-10)


def test_shira_positions_stay_integers_and_too_many_are_refused():
    net, adapted, p, _ = put(SHiRA(r=2))
    net.half()
    p = adapted.entries()["lin"].tensors({})
    assert p.I.dtype == torch.int64 and p.v.dtype == torch.float16
    with pytest.raises(ShapeError, match="positions"):
        SHiRA(r=10).params(24, 16)
    with pytest.raises(SpecError, match="mask"):
        from deltaw.spec import from_config

        from_config({"key": "shira", "mask": "largest"})


# ---- DoRA


@pytest.mark.parametrize("inner", [LoRA(r=3), LoHa(r=1), VeRA(r=3), HiRA(r=2), LoKr(r=1), GraLoRA(r=2, k=2), SHiRA(r=2)])
def test_dora_over_any_delta(inner):
    net, adapted, p, x = put(DoRA(inner))
    plain, other, q, _ = put(inner)
    with torch.no_grad():
        for name, t in other.state().items():
            t.copy_(adapted.state()[name])
    V = (plain.lin.weight + change(other)).detach()
    assert torch.allclose(net.lin.weight + change(adapted), p["g"][:, None] * V / V.norm(dim=1, keepdim=True), atol=1e-10)
    merged = adapted.merge().model()
    assert torch.allclose(merged.lin.weight.norm(dim=1), p["g"].abs(), atol=1e-10)
    assert torch.equal(merged.lin.bias, net.lin.bias)
    with torch.no_grad():
        p["g"].copy_(V.norm(dim=1))
    assert torch.allclose(net(x), plain(x), atol=1e-10)  # g at the norm: the plain delta


def test_dora_norm_by_expansion_is_the_dense_norm_and_a_constant_of_the_backward_pass():
    net, adapted, p, x = put(DoRA(LoRA(r=3, alpha=6.0)))
    W, b = net.lin.weight.detach(), net.lin.bias.detach()
    entry = adapted.entries()["lin"]
    from deltaw.sites import leaf_site

    op = LoRA(r=3, alpha=6.0).weight(leaf_site("lin", net.lin).leaf().op, entry.tensors({}))
    V = W + 2.0 * p["B"] @ p["A"]
    assert factors(op) is None and torch.allclose(row_norm(op), V.norm(dim=1), atol=1e-12)
    for detached in (True, False):
        c = V.norm(dim=1)
        want = nn.functional.linear(x, (p["g"] / (c.detach() if detached else c))[:, None] * V, b)
        expected = torch.autograd.grad((want**3).sum(), [p["A"], p["B"]], retain_graph=True)
        got = torch.autograd.grad((net(x) ** 3).sum(), [p["A"], p["B"]])
        assert all(torch.allclose(a, e, atol=1e-9) for a, e in zip(got, expected, strict=True)) == detached


def test_wrappers_ask_the_inner_method_about_the_site():
    for method in (LoKr(r=1), DoRA(LoKr(r=1)), Drop(LoKr(r=1)), DoRA(Drop(LoKr(r=1)))):
        adapted = attach(Net(nn.Conv2d(8, 12, 3)), Plan(method, targets=["lin"]))
        p = adapted.entries()["lin"].tensors({})
        assert p.C.shape == (3, 2) and p.D_a.shape == (1, 4 * 9)  # the split of the channels, the kernel in D


# ---- Drop


class Times(nn.Module):
    """A dropout whose draw is given."""

    def __init__(self, noise, p):
        super().__init__()
        self.noise, self.p = noise, p

    def forward(self, x):
        return x * self.noise if self.training else x


def test_drop_is_pefts_dropout_for_the_same_draw():
    peft = pytest.importorskip("peft")
    from deltaw.testing.oracles import oracle

    for method, use_dora in ((Drop(LoRA(r=3), p=0.4), False), (Drop(DoRA(LoRA(r=3)), p=0.4), True)):
        lin = nn.Linear(N, M)
        reference, net = Net(copy.deepcopy(lin)), Net(lin)
        adapted = attach(net, Plan(method, targets=["lin"]))
        shake(adapted)
        config = peft.LoraConfig(r=3, lora_dropout=0.4, use_dora=use_dora, target_modules=["lin"])
        wrapped = peft.get_peft_model(reference, config)
        p = adapted.entries()["lin"].tensors({})
        key, inner = ("dora", DoRA(LoRA(r=3))) if use_dora else ("lora", LoRA(r=3))
        oracle(key).peft(inner)[1](wrapped.base_model.model.lin, {k: getattr(p, k).detach() for k in p.names()})
        x = torch.randn(6, N)
        for mode in (True, False):
            ours, theirs = net.train(mode), wrapped.train(mode)
            torch.manual_seed(5)
            y = ours(x)
            torch.manual_seed(5)
            wrapped.base_model.model.lin.lora_dropout["default"] = Times(noise(x, 0.4, draw()), 0.4).train(mode)
            assert torch.allclose(y, theirs(x), atol=1e-5), (key, mode)


def test_dropout_keeps_the_stated_share_and_the_mean():
    for p in (0.0001, 0.1, 0.5, 0.9):
        x = torch.ones(300, 400)
        n = noise(x, p, 7)
        assert torch.equal(n, noise(x, p, 7)) and not torch.equal(n, noise(x, p, 8))
        share, deviation = float((n == 0).double().mean()), (p * (1 - p) / x.numel()) ** 0.5
        assert abs(share - p) < 5 * deviation + 1 / 2**15, (p, share)
        assert abs(float(n.mean()) - 1) < 5 * deviation / (1 - p) + 1e-4
        for dtype in (torch.float64, torch.bfloat16, torch.float16):
            kept = masked(x.to(dtype), mask(x.to(dtype), p, 7))
            assert torch.equal(kept != 0, n != 0)


def test_drop_draws_in_training_only_and_exports_the_evaluation_formula():
    net, adapted, _, x = put(Drop(LoRA(r=3), p=0.5))
    plain = net(x)
    assert torch.equal(net(x), plain)  # attached to a model in evaluation mode: no draws
    net.train()
    assert not torch.equal(net(x), net(x))
    mean = torch.stack([net(x) for _ in range(4000)]).mean(0)
    assert (mean - plain).abs().max() < 0.15 * plain.abs().max()
    assert adapted.to_lora().rank == 3
    assert torch.allclose(adapted.merge().model()(x), plain, atol=1e-12)
    assert adapted.entries()["lin"].training
    net.eval()
    assert torch.equal(net(x), plain)


def test_drop_on_a_convolution_drops_its_input():
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, padding=1).double()
    net = Net(conv)
    adapted = attach(net, Plan(Drop(LoRA(r=2), p=0.5), targets=["lin"]))
    shake(adapted)
    x = torch.randn(2, 4, 5, 5).double()
    delta = change(adapted)
    torch.manual_seed(1)
    y = net.train()(x)
    torch.manual_seed(1)
    z = x * noise(x, 0.5, draw())
    assert torch.allclose(y, conv._conv_forward(x, conv.weight, conv.bias) + nn.functional.conv2d(z, delta, padding=1), atol=1e-10)


def test_drop_over_every_weight_method_and_its_refusals():
    for inner in (VeRA(r=3), LoHa(r=2), LoKr(r=1), HiRA(r=2), GraLoRA(r=2, k=2), SHiRA(r=2), ABBA(r1=2, r2=2), HRA(r=2)):
        net, _, p, x = put(Drop(inner, p=0.5))
        plain = net(x)
        net.train()(x).sum().backward()
        assert any(t.grad is not None for t in p.values()) and not torch.equal(net(x), plain)
    with pytest.raises(SpecError, match="p = 1.0"):
        put(Drop(LoRA(r=2), p=1.0))
    net = Net(nn.Embedding(9, 8))
    attach(net, Plan(Drop(LoRA(r=2), p=0.5), targets=["lin"]))
    ids = torch.arange(9)
    assert torch.equal(net.train()(ids), net(ids))  # an embedding has no input to drop


# ---- all of them


@pytest.mark.parametrize("cls", [LoRA, RsLoRA, VeRA, LoHa, LoKr, ABBA, HiRA, GraLoRA, SHiRA])
def test_sizes_below_one_are_refused(cls):
    size = "r1" if cls is ABBA else "r"
    with pytest.raises(SpecError, match="r1? "):
        dataclasses.replace(cls(), **{size: 0}).params(64, 64)
