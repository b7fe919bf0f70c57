"""Training without gradients: members against models whose weights are changed for good, updates against loops over dense
probes, the search of singular values against the formula; all in small float64 models."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.func import functional_call

import deltaw
from deltaw.errors import NotLinear, ShapeError, SpecError, StateMismatch
from deltaw.evolve import Eggroll, Essa, Members, Noise, run, shape_fitness
from deltaw.evolve.noise import normals
from deltaw.ops import random as rng

F64 = torch.float64


def rand(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3)).double()


def score(model, rows):
    return -model(rows).square().sum(-1)


def lora(model=None, r=2, seed=1, **kw):
    model = net() if model is None else model
    adapted = deltaw.attach(model, deltaw.Plan(deltaw.methods.LoRA(r=r, alpha=4.0), targets=["0", "3"], **kw))
    with torch.no_grad():
        for i, p in enumerate(adapted.trainable().values()):
            p.copy_(0.3 * rand(*p.shape, seed=seed + i))
    return adapted


def under(model, tensors):
    """The model with these tensors for its own."""
    return lambda rows: functional_call(model, tensors, (rows,))


def one_by_one(search, model, X):
    """The score of each member by a model of its own."""
    return torch.stack([score(under(model, search.member(i)), X).mean() for i in range(search.population)])


# ---- probes


def test_a_row_of_probes_is_the_library_s_own_stream():
    keys = [rng.key("a", i) for i in range(3)]
    found = normals(keys, 7)
    for row, key in zip(found, keys):
        assert torch.equal(row, rng.normal((7,), key))


def test_a_member_is_known_by_seed_epoch_and_number_alone():
    noise = Noise(seed=3, rank=2)
    A, B = noise.factors("w", (6, 4), 5, range(2, 5))
    for k, j in enumerate((2, 3, 4)):
        z = rng.normal((10, 2), rng.key("eggroll", 3, "w", 5, j)).float()
        assert torch.equal(A[k], z[:6] / 2**0.5) and torch.equal(B[k], z[6:])
    assert not torch.equal(noise.factors("w", (6, 4), 6, range(2, 3))[0], A[:1])
    assert not torch.equal(Noise(seed=4, rank=2).factors("w", (6, 4), 5, range(2, 3))[0], A[:1])
    assert not torch.equal(noise.factors("v", (6, 4), 5, range(2, 3))[0], A[:1])


def test_epochs_share_probes_as_told():
    def at(reuse, epoch):
        return Noise(reuse=reuse).dense("w", (3,), epoch, range(1))

    assert torch.equal(at(4, 4), at(4, 7)) and not torch.equal(at(4, 3), at(4, 4))
    assert torch.equal(at(0, 0), at(0, 99))


@pytest.mark.parametrize("rank", [1, 2, 16])
def test_entries_have_unit_variance_and_become_gaussian_with_the_rank(rank):
    A, B = Noise(rank=rank).factors("w", (20, 30), 0, range(60))
    E = A @ B.mT
    assert float(E.mean()) == pytest.approx(0.0, abs=0.02) and float(E.square().mean()) == pytest.approx(1.0, abs=0.1)
    kurtosis = float(E.pow(4).mean())
    assert kurtosis == pytest.approx(3 + 6 / rank, rel=0.25)  # of a sum of r products of two normals, over sqrt r


# ---- fitness


def test_fitness_over_all_and_by_group():
    f = torch.tensor([1.0, 2.0, 4.0, 9.0, -3.0, 0.0], dtype=F64)
    spread = math.sqrt(sum((v - f.mean().item()) ** 2 for v in f.tolist()) / 6 + 1e-5)
    assert torch.allclose(shape_fitness(f), (f - f.mean()) / spread)
    wanted = torch.tensor([1 - 1.5, 2 - 1.5, 4 - 6.5, 9 - 6.5, -1.5, 1.5], dtype=F64) / spread
    assert torch.allclose(shape_fitness(f, 2), wanted)
    assert torch.equal(shape_fitness(torch.full((4,), 7.0)), torch.zeros(4, dtype=F64))
    with pytest.raises(SpecError, match=r"members \[1\]"):
        shape_fitness(torch.tensor([0.0, math.nan]))
    with pytest.raises(SpecError, match="divide"):
        shape_fitness(f, 4)


# ---- members


@pytest.mark.parametrize("chunk", [8, 2, 6])
def test_a_batch_of_members_scores_as_models_of_their_own(chunk):
    model, X = net(), rand(6, 5)
    search = Eggroll(model, sigma=0.2, rank=2, population=8, vectors=True, targets=["0", "3"], chunk=chunk)
    assert set(search.tensors) == {"0.weight", "0.bias", "2.weight", "2.bias", "3.weight", "3.bias"}
    assert torch.allclose(search.evaluate(X, score), one_by_one(search, model, X), atol=1e-10)


def test_pairs_are_mirrored():
    model = net()
    search = Eggroll(model, sigma=0.2, population=4, targets=["0"], vectors=True)
    plus, minus = search.member(2), search.member(3)
    for name, p in search.tensors.items():
        assert torch.allclose(plus[name] + minus[name], 2 * p.parameter) and not torch.equal(plus[name], minus[name])


def test_a_member_is_the_weight_with_its_probe_added():
    model = net()
    search = Eggroll(model, sigma=0.2, rank=3, population=4, targets=["0"])
    z = rng.normal((13, 3), rng.key("eggroll", 0, "0.weight", 0, 1)).float()
    E = z[:8] @ z[8:].mT / 3**0.5
    assert torch.allclose(search.member(3)["0.weight"], model[0].weight - 0.2 * E, atol=1e-7)


def test_embeddings_and_transposed_layers():
    pytest.importorskip("transformers")
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(11, 6), Conv1D(4, 6)).double()
    ids = torch.arange(12).reshape(3, 4) % 11

    def each(model, rows):
        return -model(rows).square().sum((-1, -2))

    search = Eggroll(model, sigma=0.2, rank=2, population=4, targets=["0", "1"])
    found = search.evaluate(ids, each)
    own = [each(under(model, search.member(i)), ids).mean() for i in range(4)]
    assert torch.allclose(found, torch.stack(own), atol=1e-10)
    assert search.gradient(found)["1.weight"].shape == (6, 4) and search.gradient(found)["0.weight"].shape == (11, 6)


def test_a_language_model():
    pytest.importorskip("transformers")
    from train_kit import tiny_model

    model = tiny_model().double()
    ids = torch.randint(0, 256, (4, 7), generator=torch.Generator().manual_seed(0))

    def likelihood(model, rows):
        logits = model(input_ids=rows).logits[:, :-1].log_softmax(-1)
        return logits.gather(2, rows[:, 1:, None]).mean((1, 2))

    search = Eggroll(model, sigma=0.05, population=4, vectors=True)
    found = search.evaluate(ids, likelihood)
    for i in range(4):
        other = copy.deepcopy(model)
        other.load_state_dict(search.member(i), strict=False)
        assert float(found[i]) == pytest.approx(
            float(likelihood(other, ids).mean().detach()), abs=1e-6
        )  # norms compute in float32
    assert float(found.std()) > 1e-3


def test_torch_s_fused_encoder_does_not_pass_members_by():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
    search = Eggroll(model, sigma=0.3, population=4, targets=["linear1", "linear2"])
    found = search.evaluate(torch.randn(2, 3, 8), lambda m, rows: m(rows)[:, :, 0].sum(1))
    assert float(found.std()) > 1e-3


@pytest.mark.parametrize("key", ["lora", "lora_xs", "vera"])
def test_members_of_an_adapter(key):
    model, X = net(), rand(6, 5)
    methods = {
        "lora": deltaw.methods.LoRA(r=2),
        "lora_xs": deltaw.methods.LoRAXS(r=2),
        "vera": deltaw.methods.VeRA(r=2),
    }
    adapted = deltaw.attach(model, deltaw.Plan(methods[key], targets=["0", "3"]))
    with torch.no_grad():
        for p in adapted.trainable().values():
            p.add_(0.3 * rand(*p.shape))
    search = Eggroll(adapted, sigma=0.2, population=6, chunk=4)
    assert set(search.tensors) == set(adapted.trainable())
    found, own = search.evaluate(X, score), {k: p.detach().clone() for k, p in adapted.trainable().items()}
    for i in range(6):
        for k, v in search.member(i).items():
            adapted.trainable()[k].data.copy_(v)
        assert float(found[i]) == pytest.approx(float(score(model, X).mean().detach()), abs=1e-9)
        for k, v in own.items():
            adapted.trainable()[k].data.copy_(v)


def test_an_adapter_that_was_started_from_the_weight_keeps_its_offset():
    model, X = net(), rand(6, 5)
    adapted = deltaw.attach(model, deltaw.Plan(deltaw.methods.LoRA(r=2), init="pissa", targets=["0", "3"]))
    tiny = Eggroll(adapted, sigma=1e-9, population=2)
    assert torch.allclose(tiny.evaluate(X, score), score(model, X).mean().detach().expand(2), atol=1e-6)


@pytest.mark.parametrize("chunk", [None, 2])
def test_several_processes_share_the_members_and_tell_one_another_scores(chunk, monkeypatch):
    from deltaw.evolve import loop
    from deltaw.sites import watch

    X, parts = rand(4, 5), []
    whole = Eggroll(net(), sigma=0.1, population=10, targets=["0"]).evaluate(X, score)
    for module in (loop, watch):
        monkeypatch.setattr(module, "several", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda t: parts.append(t.clone()))
    for rank in range(3):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        Eggroll(net(), sigma=0.1, population=10, targets=["0"], chunk=chunk).evaluate(X, score)
    assert [int((p != 0).sum()) for p in parts] == [4, 4, 2]  # blocks in turn
    assert torch.allclose(sum(parts), whole, atol=1e-12)


def test_groups_see_rows_of_their_own():
    members = Members(2, 4, 8, 4)
    rows = {"x": torch.arange(8), "n": 3}
    assert members.spread(rows)["x"].tolist() == [2, 3, 2, 3, 4, 5, 4, 5] and members.spread(rows)["n"] == 3
    assert members.mean(torch.arange(8.0)).tolist() == [0.5, 2.5, 4.5, 6.5]
    model, X = net(), rand(8, 5)
    search = Eggroll(model, sigma=0.2, population=4, group_size=2, targets=["0"])
    found = search.evaluate(X, score)
    for i in range(4):
        part = X[:4] if i < 2 else X[4:]
        assert float(found[i]) == pytest.approx(float(score(under(model, search.member(i)), part).mean().detach()))
    with pytest.raises(ShapeError, match="multiple of 4 groups"):
        members.spread(torch.zeros(6))


def test_the_base_s_product_is_made_once_for_all_members():
    from torch.utils.flop_counter import FlopCounterMode

    model = nn.Sequential(nn.Linear(64, 48, bias=False))
    X, (N, rows, m, n, r) = torch.randn(4, 64), (6, 4, 48, 64, 2)
    search = Eggroll(model, population=N, rank=r, targets=["0"])
    search.evaluate(X, score)  # what is looked up at the first call is no part of it
    with FlopCounterMode(display=False) as counter:
        search.evaluate(X, score)
    assert counter.get_total_flops() == 2 * N * rows * (m * n + r * (m + n))
    adapted = deltaw.attach(model, deltaw.Plan(deltaw.methods.LoRA(r=r), targets=["0"]))
    with torch.no_grad():
        adapted.trainable()["0.B"].add_(1.0)
    essa = Essa(adapted, population=N)
    essa.evaluate(X, score)
    with FlopCounterMode(display=False) as counter:
        essa.evaluate(X, score)
    assert counter.get_total_flops() == 2 * N * rows * (m * n + r * (m + n) + r * r)


def test_neither_training_nor_its_packages_are_needed():
    code = (
        "import sys, deltaw.evolve, deltaw.bilevel, deltaw.lowrank; "
        "print([m for m in ('transformers', 'cma', 'deltaw.train') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_progress_is_told():
    pytest.importorskip("transformers")
    from deltaw.train import Progress

    seen = []

    class Told(Progress):
        def begin(self, total, done=0, what="training"):
            seen.append((total, done, what))

        def step(self, done):
            seen.append(done)

        def end(self):
            seen.append("end")

    run(Eggroll(net(), population=2, targets=["0"]), lambda epoch: rand(2, 5), score, 2, Told())
    assert seen == [(2, 0, "eggroll"), 1, 2, "end"]


def test_nothing_is_left_behind_also_after_an_error():
    model, X = net(), rand(6, 5)
    model.train()
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    search = Eggroll(model, population=4, targets=["0", "3"], vectors=True)

    def fail(model, rows):
        assert not model.training and not torch.is_grad_enabled()
        raise RuntimeError("no score")

    with pytest.raises(RuntimeError, match="no score"):
        search.evaluate(X, fail)
    search.evaluate(X, score)
    assert all("forward" not in m.__dict__ and not m._forward_pre_hooks for m in model.modules())
    assert model.training and model[0].training and not model[1].training
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    adapted = lora(model)
    place = model[0].__dict__["forward"]
    Eggroll(adapted, population=2).evaluate(X, score)
    assert model[0].__dict__["forward"] is place


def test_what_cannot_be_evolved_is_named():
    model = net()
    for bad in ({"population": 5}, {"population": 4, "group_size": 3}, {"population": 4, "chunk": 3}, {"sigma": 0.0}):
        with pytest.raises(SpecError):
            Eggroll(model, targets=["0"], **bad)
    with pytest.raises(SpecError, match="tied"):
        tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        tied[1].weight = tied[0].weight
        Eggroll(tied, targets=["0"])
    with pytest.raises(SpecError, match="adapter is attached"):
        Eggroll(lora(model).model, targets=["0"])
    with pytest.raises(SpecError, match="conv"):
        Eggroll(nn.Sequential(nn.Conv2d(3, 3, 2)), targets=["0"])
    with pytest.raises(SpecError, match="one row at a time"):
        Eggroll(deltaw.attach(nn.Sequential(nn.Conv2d(3, 3, 2)), deltaw.Plan("lora", targets=["0"])))
    with pytest.raises(NotLinear, match="no exact low-rank factors"):
        turned = deltaw.attach(net(), deltaw.Plan(deltaw.methods.OFT(block_size=5), targets=["0"]))
        Eggroll(turned, population=2).evaluate(rand(2, 5), score)
    with pytest.raises(ShapeError, match="members cannot be told apart"):
        flat = Eggroll(nn.Sequential(nn.Flatten(0, 1), nn.Linear(5, 2)).double(), population=4, targets=["1"])
        flat.evaluate(rand(2, 3, 5), lambda m, rows: m(rows[:1]).sum(-1))


# ---- the step


@pytest.mark.parametrize("rank,chunk", [(1, 8), (3, 2)])
def test_the_gradient_by_a_loop_over_dense_probes(rank, chunk):
    model = net()
    search = Eggroll(model, sigma=0.2, rank=rank, population=8, chunk=chunk, vectors=True, targets=["0"], group_size=4)
    scores = rand(8, seed=7)
    spread = math.sqrt(float(((scores - scores.mean()) ** 2).mean()) + 1e-5)
    f = torch.cat([scores[:4] - scores[:4].mean(), scores[4:] - scores[4:].mean()]) / spread
    g = search.gradient(scores)
    for name, p in search.tensors.items():
        total = torch.zeros_like(p.parameter)
        for i in range(8):
            total += f[i] * (search.member(i)[name] - p.parameter)  # ± sigma E_i
        assert torch.allclose(g[name], -(8**0.5) / 8 * total, atol=1e-6), name


def test_a_constant_score_moves_nothing():
    model, X = net(), rand(4, 5)
    before = copy.deepcopy(model.state_dict())
    search = Eggroll(model, lr=10.0, population=8, targets=["0", "3"], vectors=True)
    search.step(X, lambda m, rows: torch.ones(len(m(rows)), dtype=F64))
    assert search.epoch == 1 and all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())


def test_the_mean_of_the_gradient_is_the_true_one_in_its_units():
    """A linear score <C, W>: E[g] = - sqrt N sigma² / std(f) C, and the angle to C closes like 1 / sqrt N."""
    model = nn.Sequential(nn.Linear(6, 5, bias=False)).double()
    C, sigma, cosines = rand(5, 6, seed=3), 0.1, []
    for N in (32, 512, 8192):
        search = Eggroll(model, sigma=sigma, population=N, targets=["0"], rank=2)
        scores = (
            search.evaluate(torch.eye(6, dtype=F64), lambda m, rows: (m(rows) * C.mT.repeat(len(rows) // 6, 1)).sum(-1))
            * 6
        )
        g = search.gradient(scores)["0.weight"]
        cosines.append(-float((g * C).sum() / (g.norm() * C.norm())))
        unit = N**0.5 * sigma**2 / (float(scores.var(correction=0)) + 1e-5) ** 0.5
    assert cosines[0] < cosines[1] < cosines[2] and cosines[2] > 0.99
    assert torch.allclose(-g, unit * C, atol=0.12 * float(unit * C.norm()))
    assert float(scores.std()) == pytest.approx(sigma * float(C.norm()), rel=0.05)


def test_the_rate_is_the_optimiser_s_and_any_optimiser_will_do():
    X, found = rand(4, 5), []
    for make in (None, lambda p: torch.optim.SGD(p, lr=0.5), lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.0)):
        model = net()
        search = Eggroll(model, lr=0.5, sigma=0.1, population=8, targets=["0"], optimizer=make)
        scores = search.evaluate(X, score)
        g, before = search.gradient(scores)["0.weight"], model[0].weight.detach().clone()
        search.tell(scores)
        found.append((model[0].weight.detach() - before, g))
    assert torch.allclose(found[0][0], -0.5 * found[0][1]) and torch.equal(found[0][0], found[1][0])
    assert torch.allclose(found[2][0], -0.01 * found[2][1].sign(), atol=1e-4)
    assert model[0].weight.grad is None


@pytest.mark.parametrize("adapter", [False, True])
def test_a_model_learns_without_a_gradient(adapter):
    model, X = net(), rand(16, 5)
    what = lora(model) if adapter else model
    kw = {} if adapter else {"targets": ["0", "3"]}
    search = Eggroll(what, sigma=0.05, population=32, optimizer=lambda p: torch.optim.Adam(p, lr=0.05), **kw)
    result = run(search, lambda epoch: X, score, 40)
    means = [line["mean"] for line in result.lines]
    assert means[-1] > 0.5 * means[0] and means[0] < -0.1
    assert result.rows == 40 * 32 * 16 and result.lines[-1]["rows"] == result.rows
    data = json.loads(json.dumps(result.data()))
    assert data["kind"] == "eggroll" and data["settings"]["population"] == 32 and len(data["lines"]) == 40


@pytest.mark.parametrize("kind", ["eggroll", "essa"])
def test_an_interrupted_search_goes_on_bit_for_bit(kind):
    def make(adapted):
        if kind == "essa":
            return Essa(adapted, seed=5, population=6)
        return Eggroll(
            adapted, sigma=0.1, population=6, seed=5, noise_reuse=2, optimizer=lambda p: torch.optim.Adam(p, lr=0.02)
        )

    def batch(epoch):
        return rand(4, 5, seed=epoch)

    whole, broken = lora(), lora()
    search = make(whole)
    lines = run(search, batch, score, 5).lines
    first = make(broken)
    run(first, batch, score, 3)
    second = make(broken)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert run(second, batch, score, 5).lines[-1]["mean"] == lines[-1]["mean"]
    if kind == "essa":
        search.write()
        second.write()
    assert all(torch.equal(a, b) for a, b in zip(whole.trainable().values(), broken.trainable().values()))
    with pytest.raises(SpecError, match="already"):
        run(second, batch, score, 2)


def test_a_state_of_another_search_is_refused():
    a, b = Eggroll(net(), population=2, targets=["0"]), Eggroll(net(), population=2, targets=["3"])
    with pytest.raises(StateMismatch, match="other tensors"):
        b.load_state_dict(a.state_dict())
    c, d = Essa(lora(), population=4), Essa(lora(), population=6)
    with pytest.raises(StateMismatch, match="another search"):
        d.load_state_dict(c.state_dict())
    e = Essa(lora(seed=9), population=4)
    with pytest.raises(StateMismatch, match="not the one it began with"):
        e.load_state_dict(c.state_dict())


def test_half_precision_weights_are_evolved_in_their_own_dtype():
    model = nn.Sequential(nn.Linear(5, 4)).bfloat16()
    search = Eggroll(model, lr=1.0, sigma=0.1, population=4, targets=["0"])
    search.step(rand(3, 5).bfloat16(), lambda m, rows: m(rows).float().sum(-1))
    assert model[0].weight.dtype == torch.bfloat16 and bool(torch.isfinite(model[0].weight).all())


def test_a_score_of_the_wrong_shape_is_named():
    search = Eggroll(net(), population=2, targets=["0"])
    with pytest.raises(ShapeError, match="one number per row"):
        search.evaluate(rand(4, 5), lambda m, rows: m(rows))
    with pytest.raises(SpecError, match="one per member"):
        search.gradient(torch.zeros(3))


# ---- singular values


def test_the_start_of_the_search_is_the_trained_adapter():
    adapted, X = lora(), rand(6, 5)
    before = {k: p.detach().clone() for k, p in adapted.trainable().items()}
    search = Essa(adapted, population=6)
    search.members()  # asking changes nothing
    search.write(search.start)
    assert all(torch.allclose(p.detach(), before[k], atol=1e-12) for k, p in adapted.trainable().items())
    assert torch.allclose(search.mean(), search.start) and search.dimension == 8
    tiny = Essa(adapted, population=4, sigma=1e-9)
    assert torch.allclose(tiny.evaluate(X, score), score(adapted.model, X).mean().detach().expand(4), atol=1e-6)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.6, 1.0])
def test_the_dimension_is_the_share_of_each_layer_s_values(share):
    search = Essa(lora(r=3), share=share, population=4)
    assert search.dimension == 2 * math.ceil(share * 6)
    first = search.layers[0]
    turns = [first.B.s[0], first.A.s[0], first.B.s[1], first.A.s[1], first.B.s[2], first.A.s[2]]
    assert torch.equal(first.start, torch.stack(turns[: math.ceil(share * 6)]))


@pytest.mark.parametrize("chunk", [None, 3])
def test_a_member_s_forward_is_the_formula(chunk):
    adapted, X = lora(), rand(6, 5)
    search = Essa(adapted, share=0.6, population=8, chunk=chunk)
    found, theta = search.evaluate(X, score), search.members()
    for i in range(8):
        weights = {}
        for site, part in zip(("0", "3"), theta[i].split(3)):
            entry = adapted.entries()[site]
            parts = []
            for name, values in (("B", {0: part[0], 1: part[2]}), ("A", {0: part[1]})):  # ceil(0.6 * 4) = 3: b1, a1, b2
                U, S, Vt = torch.linalg.svd(entry.get(name).detach(), full_matrices=False)
                S = torch.stack([values.get(k, S[k]) for k in range(2)])
                parts.append((U * S) @ Vt)
            weights[f"{site}.weight"] = adapted.model.get_submodule(site).weight + 2.0 * parts[0] @ parts[1]
        with deltaw.disabled(adapted.model):
            own = score(under(adapted.model, weights), X).mean()
        assert float(found[i]) == pytest.approx(float(own.detach()), abs=1e-9)


def test_written_members_score_as_they_did_in_the_batch():
    adapted, X = lora(), rand(6, 5)
    search = Essa(adapted, population=5)
    found, theta = search.evaluate(X, score), search.members()
    for i in range(5):
        search.write(theta[i])
        assert float(found[i]) == pytest.approx(float(score(adapted.model, X).mean().detach()), abs=1e-9)


def test_seeds_reproduce_members_and_numpy_s_generator_is_left_alone():
    import numpy as np

    np.random.seed(0)
    before = np.random.get_state()[1].tolist()
    made = []
    for seed in (1, 1, 2):
        search = Essa(lora(), seed=seed, population=6)
        for _ in range(3):
            search.step(rand(4, 5), score)
        made.append(search.members())
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
    assert np.random.get_state()[1].tolist() == before


def test_it_learns_and_exports_a_plain_adapter_of_the_same_rank(tmp_path):
    adapted, X = lora(), rand(16, 5)
    search = Essa(adapted, sigma=0.3, population=10)
    lines = run(search, lambda epoch: X, score, 25).lines
    search.write()
    assert lines[-1]["mean"] > 0.7 * lines[0]["mean"]
    assert float(score(adapted.model, X).mean().detach()) > lines[0]["mean"]
    assert adapted.to_lora().rank == 2
    adapted.save(tmp_path / "out")
    other = net()
    deltaw.load(other, tmp_path / "out")
    assert torch.allclose(other(X), adapted.model(X))


def test_many_dimensions_get_a_diagonal_covariance(monkeypatch):
    from deltaw.evolve import essa

    monkeypatch.setattr(essa, "SEPARABLE", 7)
    search = Essa(lora(), population=6)
    assert search.es.opts["CMA_diagonal"] is True
    search.step(rand(4, 5), score)
    assert not Essa(lora(r=1), population=6).es.opts["CMA_diagonal"]


def test_what_has_no_singular_values_to_scale_is_named():
    fresh = deltaw.attach(net(), deltaw.Plan(deltaw.methods.LoRA(r=2), targets=["0"]))
    with pytest.raises(SpecError, match="train the adapter a little first"):
        Essa(fresh)
    with pytest.raises(SpecError, match="share"):
        Essa(lora(), share=0.0)
    with pytest.raises(SpecError):
        other = deltaw.attach(net(), deltaw.Plan("ia3", targets=["0"]))
        Essa(other)


def test_scores_that_are_all_alike_do_no_harm():
    search = Essa(lora(), population=6)
    for _ in range(4):
        search.step(rand(4, 5), lambda m, rows: torch.zeros(len(m(rows))))
    assert bool(torch.isfinite(search.members()).all())
