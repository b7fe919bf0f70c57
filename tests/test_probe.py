"""Probes: what they measure against what autograd and plain sums say, that they stop, share, cache and leave no trace."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor, nn
from train_kit import tiny_model

import deltaw
from deltaw import Plan, Stats
from deltaw.errors import SpecError
from deltaw.methods import LoRA, RsLoRA
from deltaw.methods.init.eva import EVA
from deltaw.methods.init.gora import GoRA
from deltaw.methods.leading import leading
from deltaw.methods.pca import IncrementalPCA
from deltaw.ops import random as rng
from deltaw.plan import preview
from deltaw.testing.tiny import Around, Conv1D, Lookup, Tied, Tiny, settle, values

X = [values(4, 9, 16, name=f"b{k}") for k in range(3)]


def tiny(model=None, dtype=torch.float64):
    return settle(model or Tiny(), dtype)


def loss(model, x):
    return (model(x) - 1).square().mean()


def texts(count=3, rows=2, length=12, seed=0):
    g = torch.Generator().manual_seed(seed)
    out = []
    for k in range(count):
        ids = torch.randint(0, 256, (rows, length), generator=g)
        mask, labels = torch.ones_like(ids), ids.clone()
        mask[0, length - 1 - k :], labels[0, length - 1 - k :], labels[:, :4] = 0, -100, -100
        out.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return out


@pytest.mark.parametrize("case", ["linear", "transposed", "tied", "quantised"])
def test_gradient_is_the_mean_of_autograd(case):
    make = {"linear": Tiny, "transposed": lambda: Around(Conv1D(24, 16)), "tied": Tied, "quantised": Tiny}[case]
    model = tiny(make())
    data, targets = X, {"tied": ["table", "head"], "transposed": ["blocks.0"]}.get(case, "all-linear")
    if case == "tied":
        data = [torch.arange(12).view(3, 4), torch.arange(4, 16).view(3, 4)]
    if case == "quantised":
        model = deltaw.testing.tiny.coded(model.float())
        data = [x.float() for x in X]
    plan = Plan(LoRA(2), targets=targets, init="lora_ga")
    stats = deltaw.probe(model, data, plan, loss=loss)
    assert stats.sites
    if case == "quantised":  # the dense weights that the codes stand for
        dense = tiny(make()).float()
        for name in stats.sites:
            dense.get_submodule(name).weight.data = model.get_submodule(name).decode()
        model = dense
    for p in model.parameters():
        p.requires_grad_(True)
    for x in data:
        (loss(model, x) / len(data)).backward()
    for name, found in stats.sites.items():
        want = model.get_submodule(name).weight.grad
        want = want.mT if case in ("tied", "transposed") else want
        torch.testing.assert_close(
            found["gradient"], want.to(found["gradient"]), rtol=1e-4 if case != "linear" else 1e-9, atol=1e-7
        )


def test_gradient_of_a_language_model_in_both_kinds_of_checkpointing():
    want = {}
    for kind in ("off", "on"):
        model = tiny_model()
        if kind == "on":
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        found = deltaw.probe(model, texts(), Plan(LoRA(2), init="lora_ga")).sites
        want = want or found
        for name, got in found.items():
            torch.testing.assert_close(got["gradient"], want[name]["gradient"], rtol=1e-4, atol=1e-7)
    assert len(want) == 14


def test_no_weight_gets_a_gradient_and_no_graph_is_left():
    model, seen = tiny(), []

    def watched(m, x):
        seen.append([p.requires_grad for p in m.parameters()])
        assert m.training
        return loss(m, x)

    gc.collect()
    deltaw.probe(model, X, ["sq"], ["gradient"], loss=watched)
    assert not any(map(any, seen)) and len(seen) == 3
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_inputs_are_second_moments_and_shared():
    model, read = tiny(), {}
    for name, m in model.named_modules():
        if isinstance(m, nn.Linear):
            m.register_forward_hook(
                lambda m, a, y, name=name: read.setdefault(name, []).append(a[0].detach().flatten(0, -2))
            )
    stats = deltaw.probe(model, iter(X), "all-linear", ["inputs", "inputs_by_max"])
    for name, rows in read.items():
        whole = torch.cat(rows)
        torch.testing.assert_close(stats.sites[name]["inputs"], whole.mT @ whole / len(whole), rtol=1e-10, atol=0)
        by_max = sum(x.mT @ x / x.max() ** 2 for x in rows) / len(rows)
        torch.testing.assert_close(stats.sites[name]["inputs_by_max"], by_max, rtol=1e-10, atol=0)
    for k in (0, 1):
        a, b = stats.sites[f"blocks.{k}.sq"], stats.sites[f"blocks.{k}.up"]
        assert a["inputs"] is b["inputs"]
    assert stats.sites["blocks.0.sq"]["inputs"] is not stats.sites["blocks.1.sq"]["inputs"]


def test_padding_and_prompts_do_not_count():
    model, plan = tiny_model(), Plan(LoRA(2), targets=["layers.0.self_attn.q_proj"])
    data = texts()
    stats = deltaw.probe(model, data, plan, ["inputs", "components"])
    (found,) = stats.sites.values()
    layer, rows, labelled = model.model.layers[0], [], []
    for b in data:
        h = layer.input_layernorm(model.model.embed_tokens(b["input_ids"]))
        rows.append(h[b["attention_mask"].bool()])
        labelled.append(h[b["labels"] != -100])
    whole, some = torch.cat(rows), torch.cat(labelled)
    torch.testing.assert_close(found["inputs"], (whole.mT @ whole / len(whole)).detach())
    want = torch.linalg.svdvals(some - some.mean(0)).square()
    share = (want / want.sum())[:16].detach()
    assert (found["share"][:4] - share[:4]).abs().max() < 0.05  # parts that are cut at 16 of 32


@pytest.mark.parametrize("k", [3, 12])
def test_incremental_components(k):
    """Without a cut they are those of all rows; with one, those of scikit-learn's incremental PCA."""
    sklearn = pytest.importorskip("sklearn.decomposition")
    data = values(60, 12, name="rows") * torch.logspace(0, -1, 12, dtype=torch.float64) + 2
    ours, theirs = IncrementalPCA(k), sklearn.IncrementalPCA(k)
    for part in data.split([20, 13, 27]):
        ours.add(part)
        theirs.partial_fit(part.numpy())
    want = torch.from_numpy(theirs.components_)
    cos = (ours.components * want).sum(1).abs()
    assert (1 - cos).max() < 1e-9
    torch.testing.assert_close(ours.singular, torch.from_numpy(theirs.singular_values_), rtol=1e-9, atol=0)
    torch.testing.assert_close(ours.share, torch.from_numpy(theirs.explained_variance_ratio_), rtol=1e-9, atol=0)
    if k == 12:
        centred = data - data.mean(0)
        torch.testing.assert_close(ours.singular, torch.linalg.svdvals(centred), rtol=1e-9, atol=0)


def test_fewer_rows_than_components_wait():
    pca = IncrementalPCA(8)
    pca.add(values(5, 12, name="a"))
    assert pca.components is None
    pca.add(values(5, 12, name="b"))
    assert pca.components.shape == (8, 12) and pca.seen == 10
    few = IncrementalPCA(8)
    few.add(values(5, 12, name="a"))
    few.flush()
    assert few.components.shape == (5, 12)


def test_sketched_triplets_of_a_large_matrix():
    S = torch.logspace(0, -30, 300, dtype=torch.float64)
    U, V = (torch.linalg.qr(values(n, 300, name=f"q{n}")).Q for n in (400, 320))
    M = U * S @ V.mT
    u, s, v = leading(M, 8, lambda shape: rng.normal(shape, 7))
    torch.testing.assert_close(s, S[:8], rtol=1e-9, atol=0)
    assert (1 - (u * U[:, :8]).sum(0).abs()).max() < 1e-9 and (1 - (v * V[:, :8].mT).sum(1).abs()).max() < 1e-9
    assert (u.gather(0, u.abs().argmax(0, keepdim=True)) > 0).all()


def test_reading_stops_when_nothing_turns_any_more():
    seen, model = [], tiny()
    plan = Plan(LoRA(2), init=EVA(tau=0.99))
    deltaw.probe(model, [X[0]] * 20, plan, progress=lambda done, total: seen.append((done, total)))
    assert 2 <= len(seen) < 20 and seen[0] == (1, 20)
    fresh = [values(4, 9, 16, name=f"f{k}") for k in range(6)]  # of equal variances: components keep turning
    seen.clear()
    deltaw.probe(model, fresh, Plan(LoRA(4), init=EVA(tau=0.9999999)), progress=lambda done, total: seen.append(done))
    assert seen == [1, 2, 3, 4, 5, 6]


def test_cache_is_by_base_data_and_options(tmp_path):
    calls = []

    def counted(model, x):
        calls.append(0)
        return loss(model, x)

    def ask(model, data, plan):
        calls.clear()
        found = deltaw.probe(model, data, plan, loss=counted, cache=tmp_path)
        return len(calls), found

    plan, model = Plan(LoRA(2), init="lora_ga"), tiny()
    first, stats = ask(model, X, plan)
    again, kept = ask(tiny(), iter(X), plan)
    assert (first, again) == (3, 0)
    for site, found in stats.sites.items():
        assert torch.equal(found["gradient"], kept.sites[site]["gradient"])
    assert ask(model, X[:2], plan)[0] == 2
    assert ask(model, X, Plan(LoRA(2), targets=["sq"], init="lora_ga"))[0] == 3
    with torch.no_grad():
        model.blocks[0].sq.weight *= 2
    assert ask(model, X, plan)[0] == 3
    assert not list(tmp_path.glob(".*")) and len(list(tmp_path.iterdir())) == 4


def test_shared_statistics_are_written_once(tmp_path):
    from safetensors import safe_open

    stats = deltaw.probe(tiny(), X, "all-linear", ["inputs"])
    stats.save(tmp_path / "s")
    with safe_open(tmp_path / "s" / "stats.safetensors", "pt") as f:
        assert len(f.keys()) == 2
    again = Stats.load(tmp_path / "s")
    assert again.sites["blocks.0.sq"]["inputs"] is again.sites["blocks.0.up"]["inputs"]
    assert again.about == stats.about


def test_random_numbers_and_adapters_are_left_alone():
    model = tiny()
    model.blocks[0].norm = nn.Dropout(0.5)
    adapted = deltaw.attach(model, LoRA(2))
    with torch.no_grad():
        for p in adapted.trainable().values():
            p.add_(1.0)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one = deltaw.probe(model, X, "all-linear", ["gradient"], loss=loss)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.requires_grad for p in adapted.trainable().values()) and adapted.report()["live"]
    adapted.detach()
    two = deltaw.probe(model, X, "all-linear", ["gradient"], loss=loss)
    for name in one.sites:
        assert torch.equal(one.sites[name]["gradient"], two.sites[name]["gradient"])


def test_errors_say_what_to_do():
    model = tiny()

    class Half(Tiny):
        def forward(self, x, **kw):
            return self.blocks[0](x)

    with pytest.raises(SpecError, match="reached blocks.1.sq.*exclude"):
        deltaw.probe(tiny(Half()), X, "all-linear", ["gradient"], loss=loss)
    with pytest.raises(SpecError, match="reached blocks.1.sq"):
        deltaw.probe(tiny(Half()), X, "all-linear", ["inputs"])
    with pytest.raises(SpecError, match="nearest: gradient"):
        deltaw.probe(model, X, "all-linear", ["gradients"])
    with pytest.raises(SpecError, match="no batches"):
        deltaw.probe(model, [], "all-linear", ["gradient"], loss=loss)
    with pytest.raises(SpecError, match="loss=function"):
        deltaw.probe(model, X, "all-linear", ["gradient"])
    with pytest.raises(SpecError, match="gradient is not finite"):
        deltaw.probe(model, [X[0] * float("nan")], "all-linear", ["gradient"], loss=loss)
    with pytest.raises(SpecError, match="looks at the weights only"):
        deltaw.probe(model, X, Plan(LoRA(2), init="pissa"))
    with pytest.raises(SpecError, match="inputs of a embedding"):
        deltaw.probe(tiny(Lookup()), [torch.arange(4)], ["blocks.0"], ["inputs"])
    with pytest.raises(SpecError, match="original="):
        deltaw.probe(model, (), Plan(LoRA(2), init="loftq"))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# ---- ranks


def test_ranks_of_gora_are_counted_by_importance(tmp_path):
    model = tiny()
    plan = Plan(RsLoRA(r=6, alpha=16.0), init=GoRA(r_min=2, r_max=8))
    stats = deltaw.probe(model, X, plan, loss=loss)
    stats.sites["blocks.1.sq"]["gradient"] = torch.zeros(16, 16, dtype=torch.float64)
    adapted = deltaw.attach(model, plan, stats=stats)
    ranks = {a.site.name: a.method.r for a in adapted.assignments}
    W = {n: model.get_submodule(n).weight for n in ranks}
    seen = {n: (W[n] * stats.sites[n]["gradient"]).abs().mean().item() for n in ranks}
    size = {n: sum(W[n].shape) for n in ranks}
    budget = 6 * sum(size.values())
    want = {n: min(max(round(budget * seen[n] / sum(seen.values())) // size[n], 2), 8) for n in ranks}
    assert ranks == want and ranks["blocks.1.sq"] == 2 and len(set(ranks.values())) > 1
    for a in adapted.assignments:  # s follows the site's own rank
        assert a.method.scale == 16.0 / a.method.r**0.5
    adapted.save(tmp_path / "g")
    loaded = deltaw.load(tiny(), tmp_path / "g")
    assert {a.site.name: a.method.r for a in loaded.assignments} == ranks


def test_one_step_of_gora_descends():
    model = tiny()
    before = sum(loss(model, x).item() for x in X)
    plan = Plan(LoRA(4), init=GoRA(gamma=1e-2))
    deltaw.attach(model, plan, stats=deltaw.probe(model, X, plan, loss=loss))
    assert sum(loss(model, x).item() for x in X) < before


def test_ranks_of_eva_keep_the_budget_and_the_scale(tmp_path):
    model = tiny()
    plan = Plan(LoRA(r=4, alpha=10.0), init="eva", overrides={"blocks.0.up": {"r": 2}})
    assert preview(model, plan).rows  # a plan can be looked at before anything is measured
    stats = deltaw.probe(model, X, plan)
    stats.sites["blocks.1.sq"] = {**stats.sites["blocks.1.sq"], "share": torch.zeros(8)}
    adapted = deltaw.attach(model, plan, stats=stats)
    ranks = {a.site.name: a.method.r for a in adapted.assignments}
    assert sum(ranks.values()) == 4 + 2 + 4 + 4 and "blocks.1.sq" not in ranks
    assert max(ranks.values()) <= 8 and ranks["blocks.0.up"] <= 4
    assert {a.method.scale for a in adapted.assignments if a.site.name != "blocks.0.up"} == {2.5}
    adapted.save(tmp_path / "e")
    again = tiny()
    loaded = deltaw.load(again, tmp_path / "e")
    assert {a.site.name: a.method.r for a in loaded.assignments} == ranks
    assert torch.equal(again(X[0]), model(X[0]))


def test_names_that_end_alike_get_their_own_ranks(tmp_path):
    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.z = nn.Linear(16, 16), nn.ModuleDict({"up": nn.Linear(16, 16)})

        def forward(self, x: Tensor) -> Tensor:
            return self.z["up"](torch.tanh(self.up(x)))

    model = tiny(Nested())
    plan = Plan(LoRA(r=4), init=GoRA(r_min=1, r_max=16))
    stats = deltaw.probe(model, X, plan, loss=loss)
    stats.sites["up"]["gradient"] = stats.sites["z.up"]["gradient"] * 100
    adapted = deltaw.attach(model, plan, stats=stats)
    ranks = {a.site.name: a.method.r for a in adapted.assignments}
    assert ranks["z.up"] < ranks["up"]
    adapted.save(tmp_path / "n")
    assert {a.site.name: a.method.r for a in deltaw.load(tiny(Nested()), tmp_path / "n").assignments} == ranks


# ---- through a recipe


@pytest.mark.parametrize("init", ["lora_ga", "eva"])
def test_a_recipe_measures_by_itself_and_goes_on_without(tmp_path, monkeypatch, init):
    monkeypatch.setenv("DELTAW_CACHE", str(tmp_path / "cache"))
    from train_kit import jsonl, pairs, tiny_tokenizer

    from deltaw.train import Progress, run

    class Show(Progress):
        def __init__(self):
            self.seen = []

        def begin(self, total, done=0, what="training"):
            self.seen.append((what, total))

    def go(out, show=None, **kw):
        plan = {"method": {"key": "lora", "r": 4}, "init": init, "targets": ["q_proj", "down_proj"]}
        train = {
            "steps": 4,
            "batch_size": 4,
            "save_every": 2,
            "keep": 4,
            "lr": 1e-3,
            "probe_batches": 3,
            "watch_steps": 0,
        }
        r = {
            "data": {"path": jsonl(tmp_path / "d.jsonl", pairs())},
            "plan": plan,
            "train": train,
            "out": str(tmp_path / out),
        }
        return run(
            r, model=tiny_model(attention_dropout=0.2), tokenizer=tiny_tokenizer(), progress=show or Progress(), **kw
        )

    show = Show()
    one = go("one", show)
    assert ("measuring", 3) in show.seen and any(f"init '{init}': measuring" in note for note in one.notes)
    kept = list((tmp_path / "cache" / "probes").iterdir())
    assert len(kept) == 1
    show = Show()
    two = go("two", show)
    assert [what for what, _ in show.seen] == ["training"]  # read from the cache, and the run is the same
    assert all(torch.equal(t, two.adapted.state()[k]) for k, t in one.adapted.state().items())
    again = go("two", resume=tmp_path / "two" / "checkpoint-2")
    assert all(torch.equal(t, again.adapted.state()[k]) for k, t in one.adapted.state().items())
    ranks = {a.site.name: a.method.r for a in one.adapted.assignments}
    loaded = deltaw.load(tiny_model(), tmp_path / "one" / "adapter")
    assert {a.site.name: a.method.r for a in loaded.assignments} == ranks and sum(ranks.values()) == 16


def test_a_recipe_cannot_know_the_original_weights(tmp_path):
    from train_kit import jsonl, pairs, tiny_tokenizer

    from deltaw.train import run

    r = {
        "data": {"path": jsonl(tmp_path / "d.jsonl", pairs())},
        "plan": {"method": "lora", "init": "loftq"},
        "out": str(tmp_path / "o"),
    }
    with pytest.raises(SpecError, match="original=..."):
        run(r, model=tiny_model(), tokenizer=tiny_tokenizer(), progress=False)
