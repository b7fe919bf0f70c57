"""Measures from papers, against numbers that can be worked out by hand."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from train_kit import tiny_home, tiny_model

import deltaw
from deltaw import Plan
from deltaw.cli import main
from deltaw.errors import SpecError, StateMismatch, TargetError
from deltaw.methods import Asym, LoRA, ReFT
from deltaw.ops import Dense, chain
from deltaw.study import checks
from deltaw.study.checks import fairness_shift, knowledge_pack, lora_limits, representer, rl_subnetwork
from deltaw.study.checks.stable_rank import stable_rank
from deltaw.testing.laws.base import push
from deltaw.testing.tiny import One, settle, values


def matrix(m, n, name="M"):
    return values(m, n, name=name)


# ---- stable rank


def test_stable_rank_counts_equal_singular_values():
    for k in (1, 3, 8):
        U, V = torch.linalg.qr(matrix(12, k, "u")).Q, torch.linalg.qr(matrix(9, k, "v")).Q
        assert abs(stable_rank(U @ V.mT) - k) < 1e-12 and abs(stable_rank(5.0 * U @ V.mT) - k) < 1e-12
    M = matrix(12, 9)
    Q = torch.linalg.qr(matrix(12, 12, "q")).Q
    assert abs(stable_rank(Q @ M) - stable_rank(M)) < 1e-12 and 1 < stable_rank(M) < 9
    assert stable_rank(torch.zeros(3, 4)) == 0 and stable_rank(matrix(3, 4)[:, :1]) == pytest.approx(1)


def test_stable_rank_of_an_operator_never_needs_it_dense(monkeypatch):
    B, A = matrix(40, 3, "B"), matrix(3, 30, "A")
    want = stable_rank(B @ A)
    op = chain(B, A)
    monkeypatch.setattr(type(op), "dense", lambda self: pytest.fail("made dense"))
    assert abs(stable_rank(op) - want) < 1e-12
    assert abs(stable_rank(Dense(B)) - stable_rank(B)) < 1e-12


def test_power_iteration_agrees():
    M = matrix(30, 20)
    exact = stable_rank(M)
    assert abs(stable_rank(M, 200) - exact) < 1e-3 * exact and stable_rank(M, 1) >= exact - 1e-12
    assert stable_rank(torch.zeros(3, 4), 5) == 0


# ---- the subnetwork of an update


def test_sparsity_of_an_update():
    W = {"a": torch.ones(4, 5), "b": torch.zeros(10)}
    assert rl_subnetwork.update_sparsity(W, W) == 1.0
    new = {"a": W["a"].clone(), "b": W["b"].clone()}
    new["a"][0, :3] += 1e-3
    assert rl_subnetwork.update_sparsity(W, new) == pytest.approx(1 - 3 / 30)
    # a step of 1e-3 near 1 is below half a unit of bfloat16: there it is no change
    assert rl_subnetwork.update_sparsity(W, new, dtype=torch.bfloat16) == 1.0
    assert rl_subnetwork.update_sparsity(W, new, tol=1e-2) == 1.0
    with pytest.raises(StateMismatch, match="differ in names"):
        rl_subnetwork.update_sparsity(W, {"a": W["a"]})


def test_overlap_against_chance():
    a, b = torch.zeros(100, dtype=torch.bool), torch.zeros(100, dtype=torch.bool)
    a[:20], b[10:50] = True, True
    found = rl_subnetwork.mask_overlap({"w": a}, {"w": b})
    assert found == pytest.approx({"of_a": 0.5, "of_b": 0.25, "chance_of_a": 0.4, "chance_of_b": 0.2})
    assert rl_subnetwork.mask_overlap({"w": a}, {"w": a})["of_a"] == 1.0


def test_a_sparse_update_of_full_rank_is_kept_by_entries_not_by_rank():
    kept = rl_subnetwork.kept_by(torch.eye(20), r=5, share=0.05)
    assert kept["rank"] == pytest.approx(0.5) and kept["sparse"] == pytest.approx(1.0)
    low = rl_subnetwork.kept_by(torch.ones(20, 20), r=1, share=0.25)
    assert low["rank"] == pytest.approx(1.0) and low["sparse"] == pytest.approx(0.5)
    assert rl_subnetwork.kept_by(torch.zeros(3, 3), 1, 0.1) == {"rank": 1.0, "sparse": 1.0}


def test_inspect_shows_both(tmp_path, capsys):
    home = tiny_home(tmp_path / "base")
    model = tiny_model()
    adapted = deltaw.attach(model, Plan(LoRA(r=3), targets=["q_proj"]))
    push(adapted, 0.05)
    adapted.save(tmp_path / "adapter")
    W = model.model.layers[0].self_attn.q_proj.weight.detach()
    delta = (adapted.merge().model().model.layers[0].self_attn.q_proj.weight - W).detach()
    assert main(["inspect", str(tmp_path / "adapter"), "--base", str(home), "--json"]) == 0
    first = json.loads(capsys.readouterr().out)["deltas"][0]
    assert first["stable_rank"] == pytest.approx(stable_rank(delta), rel=1e-3) and 1 <= first["stable_rank"] <= 3
    assert first["unchanged"] == pytest.approx(float((delta.abs() <= 1e-5).double().mean()), abs=0.01)
    assert main(["inspect", str(tmp_path / "adapter"), "--base", str(home)]) == 0
    assert "stable rank" in capsys.readouterr().out


# ---- the limits of LoRA


def test_score_sizes_are_those_of_the_adapted_projections():
    model = tiny_model()
    ids = torch.arange(40).reshape(2, 20)
    plain = lora_limits.score_sizes(model, lambda: model(ids))
    assert list(plain) == [f"model.layers.{i}.self_attn" for i in range(2)]
    adapted = deltaw.attach(model, Plan(LoRA(r=2, alpha=4.0), targets=["q_proj"]))
    push(adapted, 0.5)
    got = lora_limits.score_sizes(model, lambda: model(ids))["model.layers.0.self_attn"]
    seen = []
    layer = model.model.layers[0]
    handle = layer.self_attn.k_proj.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    model(ids)
    handle.remove()
    entry = adapted.entries()["model.layers.0.self_attn.q_proj"]
    W = layer.self_attn.q_proj.weight + 2.0 * entry.get("B") @ entry.get("A")
    other = [layer.self_attn.k_proj.weight, layer.self_attn.v_proj.weight]
    want = max(float((seen[0] @ w.mT).abs().max()) for w in (W, *other))
    assert got["gamma"] == pytest.approx(want, rel=1e-5) and got["length"] == 20
    assert got["ratio"] == pytest.approx(want / math.sqrt(math.log(20)), rel=1e-5)
    assert got["gamma"] > plain["model.layers.0.self_attn"]["gamma"]
    assert not layer.self_attn.k_proj._forward_hooks, "hooks are gone"
    with pytest.raises(TargetError, match="name its projections"):
        lora_limits.score_sizes(settle(One(), torch.float64), lambda: None)


# ---- fairness


def test_kl_of_posteriors():
    p, q = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log(), torch.tensor([[0.25, 0.75], [0.9, 0.1]]).log()
    want = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert fairness_shift.posterior_kl(p, q) == pytest.approx(want / 2)
    assert fairness_shift.posterior_kl(p, q, torch.tensor([True, False])) == pytest.approx(want)
    assert fairness_shift.posterior_kl(p + 3.0, p) == pytest.approx(0, abs=1e-12)
    with pytest.raises(SpecError, match="same positions"):
        fairness_shift.posterior_kl(p, q[:1])


def test_larger_ranks_come_closer_to_full_fine_tuning():
    """A linear readout: the best rank-r part of a full-rank change, r = 1 ... 6, for which the distance must fall."""
    W, D = matrix(6, 8, "W"), 0.3 * matrix(6, 8, "D")
    x = values(200, 8, name="x")
    U, S, V = torch.linalg.svd(D, full_matrices=False)
    full, base = x @ (W + D).mT, x @ W.mT
    ranks = {r: x @ (W + (U[:, :r] * S[:r]) @ V[:r]).mT for r in (1, 2, 4, 6)}
    found = fairness_shift.by_rank(base, full, ranks)
    assert found["monotone"] and found["rank_from_full"][6] < 1e-12
    assert found["rank_from_full"][1] < found["full_from_base"]
    backwards = fairness_shift.by_rank(base, full, {1: ranks[6], 6: ranks[1]})
    assert not backwards["monotone"]


def test_the_lens_ends_at_the_output():
    model = tiny_model()
    batch = {"input_ids": torch.arange(12).reshape(2, 6)}
    base = fairness_shift.lens(model, batch)
    torch.testing.assert_close(base[-1], model(**batch).logits.detach())
    assert len(base) == 3
    h = model(**batch, output_hidden_states=True).hidden_states[1]
    torch.testing.assert_close(base[1], model.lm_head(model.model.norm(h)).detach())
    push(deltaw.attach(model, Plan(LoRA(r=2), layers=[1])), 0.3)
    shift = fairness_shift.lens_kl(fairness_shift.lens(model, batch), base)
    assert shift[0] == shift[1] == 0 and shift[2] > 1e-4, "only what is behind the adapted layer moves"
    assert fairness_shift.lens(model, batch, read=lambda h: h[..., :2])[0].shape == (2, 6, 2)


def test_gaps_between_groups():
    found = fairness_shift.group_gaps([True, True, False, False, True, False], ["a", "a", "a", "b", "b", "b"])
    assert found["accuracy"] == pytest.approx({"a": 2 / 3, "b": 1 / 3}) and found["gap"] == pytest.approx(1 / 3)
    assert found["worst"] == "b"
    assert fairness_shift.bias_retained(0.8, 0.2, 0.5) == pytest.approx(0.5)
    with pytest.raises(SpecError, match="one group"):
        fairness_shift.group_gaps([True], [])
    with pytest.raises(SpecError, match="changed nothing"):
        fairness_shift.bias_retained(0.3, 0.3, 0.1)


# ---- knowledge


def test_labels_and_shifts_of_facts():
    k = knowledge_pack
    assert k.label(["It is Paris.", "PARIS"], ["Paris"]) == k.KNOWN
    assert k.label(["Rome", "paris"], ["Paris"]) == k.MAYBE and k.label(["Rome", ""], ["Paris"]) == k.UNKNOWN
    assert not k.right("anything", [""])
    before = [k.UNKNOWN, k.UNKNOWN, k.MAYBE, k.KNOWN, k.KNOWN]
    after = [k.MAYBE, k.KNOWN, k.KNOWN, k.UNKNOWN, k.KNOWN]
    found = k.shifts(before, after)
    assert found["positive"] == pytest.approx(3 / 5) and found["negative"] == pytest.approx(1 / 5)
    assert found["moves"]["highly known -> unknown"] == pytest.approx(1 / 5) and len(found["moves"]) == 4
    with pytest.raises(SpecError, match="same facts"):
        k.shifts(before, after[:2])
    with pytest.raises(SpecError, match="at least one answer"):
        k.label([], ["Paris"])


def test_answers_that_explode():
    k = knowledge_pack
    before = [f"city {i}" for i in range(40)]
    after = ["Ulm"] * 30 + before[:10]
    found = k.explosion(before, after)
    assert found["unique_before"] == 40 and found["unique_after"] == 11 and found["exploded"] == {"ulm": 30}
    assert found["mean"] == pytest.approx(40 / 11)
    assert found["variance"] == pytest.approx((30**2 + 10) / 11 - (40 / 11) ** 2)
    assert k.explosion(before, before)["exploded"] == {}
    assert k.reliability(["it is Ulm", "Bonn"], [["Ulm"], ["Berlin", "Bärlin"]]) == 0.5
    assert k.refusals(["I don’t know.", "Ulm"]) == 0.5
    assert k.target_shift(["Ulm", "Kiel", "Rome"], [["Paris"], ["Madrid"], ["Rome"]], ["Ulm"]) == 0.5


# ---- attribution


def ridge():
    """W + s B A with A fixed, sum of squares and decay/2 |B|²: the stationary B in closed form."""
    model = settle(One(bias=False), torch.float64)
    adapted = deltaw.attach(model, Plan(Asym(r=5, alpha=10.0)))
    entry, W, s, decay = adapted.entries()["blocks.0"], model.blocks[0].weight.detach(), 2.0, 0.7
    A = entry.get("A").double()
    X, Y = values(12, 16, name="x"), values(12, 24, name="y")
    Z = s * X @ A.mT
    B = torch.linalg.solve(Z.mT @ Z + decay * torch.eye(5, dtype=Z.dtype), Z.mT @ (Y - X @ W.mT)).mT
    with torch.no_grad():
        entry.get("B").copy_(B)
    losses = [lambda i=i: 0.5 * (model(X[i : i + 1]) - Y[i : i + 1]).square().sum() for i in range(12)]
    return model, adapted, losses, decay, (X, Y, W, A, s)


def test_an_adapter_is_the_sum_of_its_examples():
    model, adapted, losses, decay, (X, Y, W, A, s) = ridge()
    found = representer.attribute(adapted, losses, decay)
    assert found.residual < 1e-9 and abs(float(found.weights().sum()) - 1) < 1e-9
    # delta W = -(s²/decay) sum_i G_i AᵀA with G_i the example's gradient in the whole weight
    B = adapted.trainable()["blocks.0.B"].detach()
    G = (model(X).detach() - Y).mT @ X
    torch.testing.assert_close(s * B @ A, -(s**2 / decay) * G @ A.mT @ A, rtol=0, atol=1e-9)
    new = values(3, 16, name="new")
    parts = found.outputs(lambda: model(new))
    torch.testing.assert_close(parts.sum(0), model(new).detach() - F.linear(new, W), rtol=0, atol=1e-9)
    torch.testing.assert_close(adapted.trainable()["blocks.0.B"].detach(), B, rtol=0, atol=0)


def test_away_from_the_stationary_point_the_residual_says_so():
    _, adapted, losses, decay, _ = ridge()
    with torch.no_grad():
        adapted.trainable()["blocks.0.B"].mul_(1.5)
    assert representer.attribute(adapted, losses, decay).residual > 0.1
    with pytest.raises(SpecError, match="decay > 0"):
        representer.attribute(adapted, losses, 0.0)
    with pytest.raises(TargetError, match="no trained tensor"):
        representer.attribute(adapted, losses, decay, ["blocks.0.C"])


def test_an_example_that_does_not_matter_gets_nothing():
    _, adapted, losses, decay, _ = ridge()
    free = lambda: (adapted.trainable()["blocks.0.B"] * 0).sum()  # noqa: E731
    weights = representer.attribute(adapted, [*losses, free], decay).weights()
    assert weights[-1] == 0 and float(weights.sum()) == pytest.approx(1)


def test_every_check_is_listed():
    import pkgutil

    assert {m.name for m in pkgutil.iter_modules(checks.__path__)} == set(checks.__all__)
    for name in checks.__all__:
        assert f"    {name} " in checks.__doc__


def test_a_stream_has_no_deltas(tmp_path, capsys):
    home, model = tiny_home(tmp_path / "base"), tiny_model()
    deltaw.attach(model, Plan(ReFT(r=2))).save(tmp_path / "adapter")
    assert main(["inspect", str(tmp_path / "adapter"), "--base", str(home), "--json"]) == 0
    assert {d["stable_rank"] for d in json.loads(capsys.readouterr().out)["deltas"]} == {None}
