"""Compression of models: layers, files, the command."""

from __future__ import annotations

import contextlib
import copy
import json

import pytest
import torch
from torch import nn

import deltaw
from deltaw.compress import Factored, count, dense
from deltaw.errors import SpecError, StateMismatch
from deltaw.testing.tiny import values

F64 = torch.float64


class Net(nn.Module):
    def __init__(self, dtype=F64):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(24, 32), nn.Linear(32, 24, bias=False), nn.Linear(24, 40)]).to(dtype)
        with torch.no_grad():
            for k, p in enumerate(self.parameters()):
                p.copy_(values(*p.shape, name=f"p{k}", std=0.3, dtype=dtype))

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def data(count=6, dtype=F64):
    return [values(8, 24, name=f"batch{k}", dtype=dtype) for k in range(count)]


@pytest.mark.parametrize("method", ["svd", "asvd", "svd_llm", "afm_ctr"])
def test_a_factored_model_is_smaller_and_adapters_find_its_factors(method):
    net = Net()
    y = torch.cat([net(x) for x in data()])
    found = deltaw.compress(net, method, 0.4, data())
    assert found.after == count(net) < found.before and all(isinstance(m, Factored) for m in net.layers)
    assert all(0 < s["error"] < 1 for s in found.sites.values())
    off = (torch.cat([net(x) for x in data()]) - y).norm() / y.norm()
    assert 0 < off < 1
    adapted = deltaw.attach(net, deltaw.methods.LoRA(r=2))
    assert {a.site.name for a in adapted.assignments} == {f"layers.{k}.{w}" for k in range(3) for w in ("down", "up")}


def test_the_error_that_is_stated_is_the_error_that_is_there():
    net, x = Net(), torch.cat(data())
    W, b = net.layers[0].weight.detach().clone(), net.layers[0].bias.detach().clone()
    found = deltaw.compress(net, "svd_llm", 0.4, data(), targets=["layers.0"])
    off = (net.layers[0](x) - b - x @ W.mT).norm() / (x @ W.mT).norm()
    assert found.sites["layers.0"]["output_error"] == pytest.approx(float(off), rel=1e-6)
    plain = deltaw.compress(Net(), "svd", 0.4, data(), targets=["layers.0"], refit=False)
    assert plain.sites["layers.0"]["error"] < found.sites["layers.0"]["error"]  # nearest in W, not in W x


def test_a_refit_lowers_the_output_error_and_ratios_are_by_site():
    first = deltaw.compress(Net(), "svd", 0.5, data(), targets=["layers.2"], refit=False)
    net = Net()
    second = deltaw.compress(net, "svd", 0.5, data(), targets=["layers.2"], refit=True)
    x = data()
    W = Net().layers[2].weight

    def output_error(model):
        inputs = [torch.tanh(model.layers[1](torch.tanh(model.layers[0](b)))) for b in x]
        z, layer = torch.cat(inputs), model.layers[2]
        return float((layer.up.weight @ layer.down.weight @ z.mT - W @ z.mT).norm())

    other = Net()
    deltaw.compress(other, "svd", 0.5, targets=["layers.2"])
    assert output_error(net) < output_error(other)
    assert first.sites["layers.2"]["rank"] == second.sites["layers.2"]["rank"]
    net = Net()
    found = deltaw.compress(net, "svd", 0.5, ratios={"layers.0": 0.8})
    assert found.sites["layers.0"]["rank"] < found.sites["layers.1"]["rank"]


def test_sequential_calibration_sees_compressed_inputs():
    one, two = Net(), Net()
    a = deltaw.compress(one, "svd_llm", 0.5, data())
    b = deltaw.compress(two, "svd_llm", 0.5, data(), sequential=True)
    assert a.sites["layers.0"] == b.sites["layers.0"] and a.sites["layers.2"] != b.sites["layers.2"]


def test_shears_prunes_half_of_each_row_in_place():
    net = Net()
    found = deltaw.compress(net, "shears", 0.5, data())
    for layer in net.layers:
        assert bool(((layer.weight == 0).sum(1) == layer.in_features // 2).all())
    assert found.before == found.after  # zeros are numbers too, until something uses them


def test_what_is_missing_or_wrong_is_said():
    for kw, match in (({}, "calibration"), ({"ratio": 1.5, "batches": data()}, "between 0 and 1"), ({"batches": data(), "ratios": {"no": 0.5}}, "'no'")):
        with pytest.raises(SpecError, match=match):
            deltaw.compress(Net(), "svd_llm", **kw)
    with pytest.raises(SpecError, match="compressor"):
        deltaw.compress(Net(), "svd_lm", batches=data())


def test_saved_factors_come_back_and_another_model_is_refused(tmp_path):
    net = Net()
    deltaw.compress(net, "svd", 0.4)
    y = net(data()[0])
    deltaw.save_compressed(net, tmp_path / "c", {"why": "a test"})
    assert json.loads((tmp_path / "c" / "compressed.json").read_text())["facts"] == {"why": "a test"}
    again = deltaw.load_compressed(Net(), tmp_path / "c")
    assert torch.equal(again(data()[0]), y)
    torch.testing.assert_close(dense(again)(data()[0]), y, rtol=0, atol=1e-5)
    other = Net()
    other.layers[0] = nn.Linear(24, 31)
    with pytest.raises(StateMismatch, match="layers.0"):
        deltaw.load_compressed(other, tmp_path / "c")


def test_a_table_in_fewer_numbers_loses_the_eigenvalues_left_out():
    from deltaw.compress import factored_table

    layer = nn.Embedding(12, 6, dtype=F64)
    counts = torch.arange(1, 13)
    p = counts.double() / counts.sum()
    E = layer.weight.detach()
    centred = E - p @ E
    tail = torch.linalg.eigvalsh(centred.mT @ (p[:, None] * centred))
    for k in (1, 3, 6):
        small = factored_table(layer, counts, k)
        off = (small(torch.arange(12)) - E).detach().square().sum(1)
        torch.testing.assert_close((p * off).sum(), tail[: 6 - k].sum(), rtol=1e-9, atol=1e-12)
        assert sum(t.numel() for t in small.parameters()) == 12 * k + 6 * (k + 1)
    with pytest.raises(SpecError, match="k = 7"):
        factored_table(layer, counts, 7)


def test_distilling_from_the_base_is_pelas_sum():
    """Every term by hand, from outputs taken apart; the teacher gets no gradient, and training lowers it."""
    from train_kit import tiny_model

    model = tiny_model().double()
    adapted = deltaw.attach(model, deltaw.Plan(deltaw.methods.PELA(c=2.0), targets=["up_proj", "down_proj"]))
    batch = {"input_ids": torch.arange(12).view(2, 6), "labels": torch.arange(12).view(2, 6), "output_hidden_states": True}
    with torch.no_grad():
        with deltaw.disabled(model):
            want = model(**batch)
        got = model(**batch)
    found, extra = deltaw.distil(adapted, batch, features=0.7, logits=0.3, weights=2.0, epsilon=0.01)
    layers = model.model.layers
    outs = {}
    for name, on in (("student", True), ("teacher", False)):
        hooks = [m.register_forward_hook(lambda m, a, o, n=name: outs.setdefault(n, []).append(o[0] if isinstance(o, tuple) else o)) for m in layers]
        with torch.no_grad(), contextlib.nullcontext() if on else deltaw.disabled(model):
            model(**batch)
        for h in hooks:
            h.remove()
    total = 0.7 * sum(((a - b) ** 2).mean() for a, b in zip(outs["student"], outs["teacher"])) / len(layers)
    total = total + 0.3 * ((got.logits - want.logits) ** 2).mean()
    sizes = [(a.site.module.weight - deltaw.convert.site_layer(adapted, a).op.dense()).abs().max() for a in adapted.assignments]
    total = total + 2.0 * sum((s - 0.01) ** 2 for s in sizes) / len(sizes)
    assert float(extra.detach()) == pytest.approx(float(total.detach()), rel=1e-5) and torch.equal(found.logits, got.logits)
    optimizer = adapted.optimizer(1e-3)
    first = float(extra.detach())
    for _ in range(5):
        optimizer.zero_grad()
        found, extra = deltaw.distil(adapted, batch)
        extra.backward()
        optimizer.step()
    assert float(deltaw.distil(adapted, batch, features=0.7, logits=0.3, weights=2.0, epsilon=0.01)[1].detach()) < first
    assert all(p.grad is None for n, p in model.named_parameters() if ".deltaw" not in n)


def test_knapsack_and_cut_list_against_all_choices():
    from itertools import product

    from deltaw.methods.rank import allocators

    pytest.importorskip("scipy")
    damage = [[float((3 * i + 7 * j * j) % 11) for j in range(4)] for i in range(3)]
    weight = [[float(4 - j + i) for j in range(4)] for i in range(3)]
    for budget in (7.0, 9.0, 12.0, 20.0):
        fits = [c for c in product(range(4), repeat=3) if sum(weight[i][j] for i, j in enumerate(c)) <= budget]
        if not fits:
            with pytest.raises(SpecError):
                allocators.knapsack(damage, weight, budget)
            continue
        best = min(sum(damage[i][j] for i, j in enumerate(c)) for c in fits)
        found = allocators.knapsack(damage, weight, budget)
        assert tuple(found) in fits and sum(damage[i][j] for i, j in enumerate(found)) == best
    triples = [(s, r, (1 - r) * k) for k, s in enumerate("abc", 1) for r in (0.4, 0.6, 0.8)]
    sizes = {"a": 100, "b": 50, "c": 25}
    taken = []
    for target in (100, 130, 150, 174):
        found = allocators.cut_list(triples, lambda ratios, target=target: sum(ratios[s] * sizes[s] for s in sizes) <= target)
        taken.append(sum(found[s] * sizes[s] for s in sizes))
        assert taken[-1] <= target
    assert taken == sorted(taken)


def test_ratios_that_are_searched_lose_less_at_the_same_size():
    """One layer has rank 6 and loses nothing; the search takes from it what the others then keep."""
    net, x = Net(), torch.cat(data())
    with torch.no_grad():
        net.layers[1].weight.copy_(values(24, 6, name="L", dtype=F64) @ values(6, 32, name="R", dtype=F64) / 6)
    want, before = net(x), {k: v.clone() for k, v in net.state_dict().items()}

    def off(model):
        return float((model(x) - want).square().mean())

    ratios = deltaw.search_ratios(net, "svd_llm", 0.3, off, data(), grid=(0.1, 0.3, 0.5))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()) and not any(isinstance(m, Factored) for m in net.layers)
    assert ratios["layers.1"] == 0.5 and min(ratios.values()) < 0.3
    alike, searched = copy.deepcopy(net), copy.deepcopy(net)
    deltaw.compress(alike, "svd_llm", 0.3, data())
    found = deltaw.compress(searched, "svd_llm", 0.3, data(), ratios=ratios)
    assert found.after <= 0.7 * found.before + 40 and off(searched) < off(alike)
    assert all((v["rank"] is None) == (ratios[k] == 0) for k, v in found.sites.items())
    with pytest.raises(SpecError, match="offer smaller ones"):
        deltaw.search_ratios(net, "svd", 0.6, off, grid=(0.1,))
    with pytest.raises(SpecError, match="between 0 and 1"):
        deltaw.search_ratios(net, "svd", 0.6, off, grid=(0.0,))
    with pytest.raises(SpecError, match="calibration batches"):
        deltaw.search_ratios(net, "svd_llm", 0.6, off)


def test_a_search_that_fails_leaves_the_model_as_it_was():
    net = Net()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(ZeroDivisionError):
        deltaw.search_ratios(net, "svd", 0.3, lambda model: 1 / 0)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
