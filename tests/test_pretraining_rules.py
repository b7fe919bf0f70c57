"""Training from scratch with low-rank and sparse weights: closed forms of the rules, their properties, resuming, merging."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d
from train_kit import tiny_model

import deltaw
from deltaw.errors import ShapeError, SpecError
from deltaw.methods.convolution import channels, spatial
from deltaw.methods.remade import Remade
from deltaw.methods.rules.trp import cut
from deltaw.methods.update.algebra.kls import rank_at
from deltaw.ops import Dense
from deltaw.plan import Plan
from deltaw.spec import METHODS, RULES
from deltaw.testing.closed import closed
from deltaw.testing.closed.hand import adam
from deltaw.testing.tiny import Tiny, settle, values

METHOD = {
    "low_rank": {"r": 3}, "sltrain": {"r": 3, "delta": 0.2}, "sst": {"r": 3, "every": 3, "warmup": 2}, "trp": {"every": 3},
    "dlrt": {"r": 3, "r_max": 4},
}  # fmt: skip


def plan(key: str, **kw):
    if key == "dlrt":
        kw.setdefault("update", "dlrt")
    if key == "low_rank":
        kw.setdefault("rules", {"key": "lowrank_refactor", "every": 3, "recovery": 2})
    return Plan(METHODS[key](**METHOD[key]), **kw)


def problem(key: str, **kw):
    model = settle(Tiny(), torch.float64)
    adapted = deltaw.attach(model, plan(key, **kw))
    return model, adapted, adapted.optimizer(1e-2)


def go(model, optimizer, steps):
    losses = []
    for k in steps:
        optimizer.zero_grad()
        loss = (model(values(8, 16, name=f"x{k}")) - values(8, 16, name=f"y{k}")).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("key", ["sst", "trp", "lowrank_refactor"])
def test_rule_is_its_closed_form(key):
    assert "steps" in closed("rules", key).check()


@pytest.mark.parametrize("key", list(METHOD))
def test_resumed_in_the_middle_of_a_period_to_the_bit(key, tmp_path):
    model, whole, optimizer = problem(key)
    go(model, optimizer, range(5))
    whole.save(tmp_path / "a")
    torch.save(optimizer.state_dict(), tmp_path / "o.pt")
    go(model, optimizer, range(5, 11))
    other = settle(Tiny(), torch.float64)
    again = deltaw.load(other, tmp_path / "a")
    second = again.optimizer(1e-2)
    second.load_state_dict(torch.load(tmp_path / "o.pt", weights_only=True))
    go(other, second, range(5, 11))
    for name, t in whole.state().items():
        assert torch.equal(again.state()[name], t), name


@pytest.mark.parametrize("key", list(METHOD))
def test_a_model_from_scratch_is_trained_and_merged(key):
    """Embeddings, norms and head by `train_modules`; the merged model is a dense one of the same function."""
    model = tiny_model(tie_word_embeddings=False).train()
    rest = ["embed_tokens", "lm_head", "norm", "input_layernorm", "post_attention_layernorm"]
    adapted = deltaw.attach(model, plan(key, train_modules=rest, targets=r".*_proj"))
    optimizer, ids = adapted.optimizer(3e-3), torch.arange(64).reshape(2, 32) % 7
    before, losses = {k: t.detach().clone() for k, t in adapted.trainable().items()}, []
    for _ in range(12):
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
    moved = [k for k, t in adapted.trainable().items() if not torch.equal(t, before[k])]
    assert len(moved) == len(before)
    merged = adapted.merge(probe={"input_ids": ids}).model()
    model.eval()
    torch.testing.assert_close(merged(input_ids=ids).logits, model(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    assert not any("deltaw" in k for k in merged.state_dict())


# ---- sltrain


def test_sltrain_keeps_no_weight_for_the_backward_pass():
    lin = nn.Sequential(nn.Linear(40, 30, bias=False)).double()
    deltaw.attach(lin, Plan(METHODS["sltrain"](r=2, delta=0.1), targets=["0"]))
    kept: list[torch.Tensor] = []
    x = values(64, 40, name="x").requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = lin(x)
    sizes = [t.numel() for t in kept]
    assert 64 * 40 in sizes and 30 * 40 not in sizes, sizes
    entry = deltaw.adapters(lin)[0] if isinstance(deltaw.adapters(lin), list) else next(iter(deltaw.adapters(lin)))
    p = entry.entries()["0"]
    W = (16.0 * p.get("B") @ p.get("A")).flatten().index_add(0, p.get("I").long(), p.get("v")).view(30, 40)
    torch.testing.assert_close(y, x @ W.mT)


def test_the_weight_that_is_made_again_has_the_gradients_of_the_one_that_is_kept():
    w, x = values(6, 5, name="w").requires_grad_(), values(50, 5, name="x").requires_grad_()
    ours = torch.autograd.grad(Remade(Dense(w, 2.0))(x).pow(3).sum(), (w, x))
    theirs = torch.autograd.grad((x @ (2.0 * w).mT).pow(3).sum(), (w, x))
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b)


def test_sltrain_is_sparse_at_first_and_of_low_rank_beside_its_entries():
    _, adapted, optimizer = problem("sltrain")
    site, entry = adapted.assignments[0].site, adapted.entries()["blocks.0.sq"]

    def weight():
        return entry.layer(site.leaf(), {}).op.dense().detach()

    assert int((weight() != 0).sum()) == len(entry.get("v")) == int(0.2 * 256)
    go(adapted.model, optimizer, range(3))
    rest = weight().flatten().index_add(0, entry.get("I").long(), -entry.get("v").detach()).view(16, 16)
    assert int(torch.linalg.matrix_rank(rest, rtol=1e-10)) == 3


def test_sltrain_positions_depend_on_the_seed_alone():
    found = [
        deltaw.attach(settle(Tiny(), torch.float32), plan("sltrain", seed=s)).state()["blocks.0.sq.I"]
        for s in (3, 3, 4)
    ]
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2]) and found[0].dtype == torch.int32


def test_sltrain_without_room_for_an_entry_is_refused():
    with pytest.raises(ShapeError, match="at least one"):
        deltaw.attach(settle(Tiny(), torch.float32), Plan(METHODS["sltrain"](r=2, delta=1e-4)))


# ---- sst


def test_sst_trains_few_vectors_at_a_time_and_keeps_them_on_the_sphere():
    model, adapted, optimizer = problem("sst")
    entry = adapted.entries()["blocks.0.sq"]
    U, first = entry.get("U").clone(), entry.get("I").clone()
    go(model, optimizer, range(2))
    assert torch.equal(entry.get("U"), U)  # frozen in between, to the bit
    go(model, optimizer, range(2, 3))
    changed = (entry.get("U") != U).any(0).nonzero().flatten()
    assert torch.equal(changed, first) and not torch.equal(entry.get("I"), first)
    go(model, optimizer, range(3, 20))
    for name, axis in (("U", 0), ("u", 0), ("V", 1), ("v", 1)):
        norms = entry.get(name).detach().norm(dim=axis)
        torch.testing.assert_close(norms, torch.ones_like(norms))
    assert bool((entry.get("S") >= 0).all())


def test_sst_decomposes_anew_without_changing_the_weight():
    _, adapted, optimizer = problem("sst", targets=["blocks.0.sq"])
    go(adapted.model, optimizer, range(17))
    site, entry = adapted.assignments[0].site, adapted.entries()["blocks.0.sq"]
    U, S, V = (entry.get(k).detach() for k in "USV")
    u, v, I = (entry.get(k).detach() for k in "uvI")  # noqa: E741
    before = (U.index_copy(1, I, u) * S) @ V.index_copy(0, I, v)
    gap = (U.mT @ U - torch.eye(16)).abs().max()
    assert gap > 1e-6  # vectors have lost their orthogonality since the start
    engine = next(h.__self__ for h in optimizer._optimizer_step_post_hooks.values() if hasattr(h, "__self__"))
    rule, (view,) = engine.rules[0]
    engine.optimizer, view.s["turns"] = optimizer, torch.tensor(5)  # the sixth turn of ceil(16 / 3)
    with torch.no_grad():
        rule.turn(view)
    W = entry.layer(site.leaf(), {}).op.dense().detach()
    torch.testing.assert_close(W, before, rtol=0, atol=1e-12)
    assert (entry.get("U").mT @ entry.get("U") - torch.eye(16)).abs().max() < 1e-12


def test_sst_draws_with_its_probabilities():
    from types import SimpleNamespace

    from deltaw.spec import Start, Tensors

    S = torch.tensor([4.0, 2.0, 1.0, 1.0, 0.0]).double()
    want, count, runs = 0.5 * (0.2 + S / S.sum()), torch.zeros(5), 3000
    rule = RULES["sst"](every=1)
    for k in range(runs):
        p = Tensors(U=torch.eye(5), V=torch.eye(5), S=S, u=torch.eye(5)[:, :1], v=torch.eye(5)[:1], I=torch.tensor([0]))
        draw = Start("site", "linear", Dense(torch.eye(5)), k).at(f"sst/{k}", None)
        drawn: dict[str, torch.Tensor] = {}
        view = SimpleNamespace(
            p=p, s={"turns": torch.tensor(0), "since": torch.tensor(0)}, draw=lambda _, d=draw: d,
            set=lambda name, t, restart=False, out=drawn: out.update({name: t}),
        )  # fmt: skip
        rule.turn(view)
        count[drawn["I"]] += 1
    sd = (want * (1 - want) / runs).sqrt()
    assert bool(((count / runs - want).abs() < 4 * sd).all()), (count / runs, want)


# ---- trp


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99, 1.0])
def test_a_cut_is_the_smallest_that_keeps_its_share(energy):
    W = values(9, 6, name="W")
    U, S, V = cut(W, energy)
    all_ = torch.linalg.svdvals(W)
    k, total = len(S), all_.square().sum()
    assert all_[:k].square().sum() >= energy * total * (1 - 1e-12)
    assert k == 1 or all_[: k - 1].square().sum() < energy * total
    torch.testing.assert_close(torch.linalg.svdvals(U @ V)[:k], torch.ones(k).double())
    assert int(torch.linalg.matrix_rank((U * S) @ V)) == k


def test_a_kernel_cut_by_columns_and_rows_is_two_convolutions():
    N, C, kh, kw = 5, 3, 3, 2
    W, x = values(N, C * kh * kw, name="K"), values(2, C, 7, 6, name="x")
    M = spatial(W, (kh, kw))
    assert M.shape == (C * kh, N * kw) and torch.equal(channels(M, (kh, kw)), W)
    U, S, V = cut(M, 0.7)
    k = len(S)
    assert k < min(M.shape)
    columns = (U * S).mT.reshape(k, C, kh, 1)
    rows = V.reshape(k, N, 1, kw).transpose(0, 1)
    kernel = channels((U * S) @ V, (kh, kw)).view(N, C, kh, kw)
    torch.testing.assert_close(conv2d(conv2d(x, columns), rows), conv2d(x, kernel))


@pytest.mark.parametrize("kernel", [(), (3, 2)])
def test_trp_cuts_and_pushes_kernels_in_either_form(kernel):
    """Two steps against Adam on the kernel, cut and pushed by hand."""
    model, rate, penalty = settle(nn.Sequential(nn.Conv2d(3, 5, (3, 2), bias=False)), torch.float64), 1e-2, 0.05
    W, x = model[0].weight.detach().clone(), values(2, 3, 7, 6, name="x")
    adapted = deltaw.attach(model, deltaw.Plan(METHODS["trp"](energy=0.6, penalty=penalty, every=1, kernel=kernel), targets=["0"]))
    optimizer, push = adapted.optimizer(rate), torch.zeros_like(W)
    state = {}
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        W.requires_grad_()
        (G,) = torch.autograd.grad(conv2d(x, W).square().mean(), W)
        W = W.detach() - adam(G + penalty * push, state, rate)
        M = W.permute(1, 2, 0, 3).reshape(9, 10) if kernel else W.reshape(5, 18)
        U, S, V = cut(M, 0.6)
        assert len(S) < min(M.shape)

        def back(M):
            return M.view(3, 3, 5, 2).permute(2, 0, 1, 3) if kernel else M.view(5, 3, 3, 2)

        W, push = back((U * S) @ V), back(U @ V)
        torch.testing.assert_close(adapted.entries()["0"].get("D"), W.reshape(5, 18), rtol=0, atol=1e-9)


def test_a_kernel_that_does_not_fit_is_refused():
    model = settle(nn.Sequential(nn.Conv2d(3, 5, (3, 2))), torch.float64)
    with pytest.raises(SpecError, match="divide the 18 inputs"):
        deltaw.attach(model, deltaw.Plan(METHODS["trp"](kernel=(5, 2)), targets=["0"])).optimizer(1e-3)


def test_trp_that_cuts_nothing_is_plain_training():
    found = []
    for method in (METHODS["trp"](energy=1.0, penalty=0.0, every=2), METHODS["trp"](every=10**6)):
        model = settle(Tiny(), torch.float64)
        adapted = deltaw.attach(model, method)
        go(model, adapted.optimizer(1e-2), range(6))
        found.append(adapted.state())
    assert all(torch.equal(t, found[1][k]) for k, t in found[0].items())
    with pytest.raises(SpecError, match="share"):
        deltaw.attach(settle(Tiny(), torch.float64), METHODS["trp"](energy=0.0)).optimizer(1e-2)


# ---- lowrank_refactor


def test_refactoring_starts_moments_anew_and_comes_back_slowly():
    model, adapted, optimizer = problem("low_rank")
    go(model, optimizer, range(3))
    A = adapted.entries()["blocks.0.sq"].get("A")
    assert A not in optimizer.state
    before = A.detach().clone()
    go(model, optimizer, range(3, 4))
    first = (A - before).abs().max()
    before = A.detach().clone()
    go(model, optimizer, range(4, 5))
    assert first < 2e-5 and (A - before).abs().max() > 100 * first  # 0.001 and 1 of the way, at lr = 1e-2
    with pytest.raises(SpecError, match="products B A; IA3.* has none"):
        model = settle(Tiny(), torch.float64)
        go(model, deltaw.attach(model, Plan("ia3", targets=["sq"], rules="lowrank_refactor")).optimizer(1e-2), range(1))
    with pytest.raises(SpecError, match="rank r <= m, n"):
        wide = Plan(METHODS["low_rank"](r=17), rules="lowrank_refactor")
        deltaw.attach(settle(Tiny(), torch.float64), wide).optimizer(1e-2)


# ---- dlrt


@pytest.mark.parametrize("theta", [0.0, 0.05, 0.3, 0.9])
def test_the_rank_is_the_smallest_that_loses_little(theta):
    sigma = torch.linalg.svdvals(values(8, 8, name="sigma"))
    k = rank_at(sigma, theta, 8)
    assert sigma[k:].norm() <= theta * sigma.norm()
    assert k == 2 or sigma[k - 1 :].norm() > theta * sigma.norm()
    assert rank_at(sigma, theta, 3) <= 3 and rank_at(torch.zeros(6), theta, 4) == 2


def test_a_step_with_a_closure_is_two_halves():
    x, y, found = values(8, 16, name="x"), values(8, 16, name="y"), []
    for halves in (False, True):
        model, adapted, optimizer = problem("dlrt")

        def closure(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            return loss

        for _ in range(3):
            if halves:
                closure(), optimizer.step(), closure(), optimizer.step()
            else:
                optimizer.step(closure)
        found.append(copy.deepcopy(adapted.state()))
    assert all(torch.equal(t, found[1][k]) for k, t in found[0].items())


def test_dlrt_lowers_the_loss_of_a_quadratic_at_every_step_and_finds_its_rank():
    model = nn.Sequential(nn.Linear(12, 10, bias=False)).double()
    nn.init.orthogonal_(model[0].weight)
    target = values(10, 2, name="a") @ values(2, 12, name="b")
    adapted = deltaw.attach(
        model, Plan(METHODS["dlrt"](r=4, r_max=5), targets=["0"], update={"key": "dlrt", "theta": 0.02})
    )
    optimizer, losses = adapted.optimizer(0.3), []

    def closure():
        optimizer.zero_grad()
        loss = 0.5 * (model(torch.eye(12).double()).mT - target).square().sum()
        loss.backward()
        return loss

    for _ in range(40):
        losses.append(float(optimizer.step(closure).detach()))
    assert all(b < a + 1e-3 * losses[0] for a, b in zip(losses, losses[1:])) and losses[-1] < 1e-3 * losses[0]
    assert int((adapted.entries()["0"].get("U") != 0).any(0).sum()) == 2
