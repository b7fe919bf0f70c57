"""Methods with frozen bases: what their papers say beyond the formula, and what no law covers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import deltaw
from deltaw import Plan
from deltaw.errors import ShapeError, SpecError
from deltaw.methods import NOLA, OSF, PSOFT, AdaMSS, FRoD, PVeRA, RandLoRA, TeRA, TiedLoRA, TinyLoRA, UniLoRA, VBLoRA
from deltaw.methods.rules.asa import ASA
from deltaw.testing.laws.base import push
from deltaw.testing.oracles.nola import basis


def net(depth=3, m=16, n=16, dtype=torch.float64):
    torch.manual_seed(0)
    return nn.ModuleDict(
        {"layers": nn.ModuleList([nn.ModuleDict({"q": nn.Linear(n, m), "v": nn.Linear(n, m, bias=False)}) for _ in range(depth)])}
    ).to(dtype)


def delta(model, adapted, name):
    (W,) = [adapted.merge().model().get_submodule(name).weight]
    return W - model.get_submodule(name).weight


def attached(method, model=None, size=0.3, **kw):
    model = net() if model is None else model
    adapted = deltaw.attach(model, Plan(method, targets=["q", "v"], **kw))
    push(adapted, size)
    return model, adapted


# ---- PSOFT


def test_psoft_keeps_angles_and_singular_values_without_its_vectors():
    model, adapted = attached(PSOFT(r=5))
    with torch.no_grad():
        for name, t in adapted.trainable().items():
            if not name.endswith(".q"):
                t.fill_(1.0)
    W, D = model.layers[0].q.weight, delta(model, adapted, "layers.0.q")
    A = adapted.state()["layers.0.q.A"]
    torch.testing.assert_close(A @ A.mT, torch.eye(5, dtype=A.dtype))
    assert D.abs().max() > 1e-2 and torch.linalg.matrix_rank(D, rtol=1e-9) in (4, 5)
    torch.testing.assert_close(torch.linalg.svdvals(W + D), torch.linalg.svdvals(W), rtol=1e-9, atol=1e-9)


# ---- sharing


def test_tinylora_shares_v_by_scope_and_draws_p_for_every_site():
    _, adapted = attached(TinyLoRA(u=3), overrides={"0.q|1.q": {"scope": "first"}})
    names = [k for k in adapted.trainable()]
    assert names.count("first.v") == 1 and "layers.2.q.v" in names and len(names) == 1 + 4
    P = [t for k, t in adapted.state().items() if k.endswith(".P")]
    assert len(P) == 6 and all(not torch.equal(P[0], other) for other in P[1:])


def test_tied_lora_has_one_pair_for_a_role_and_sums_its_gradients():
    model, adapted = attached(TiedLoRA(r=3))
    state = adapted.trainable()
    assert sum(k.endswith((".A", ".B")) for k in state) == 4 and sum(k.endswith((".u", ".v")) for k in state) == 12
    x = torch.randn(5, 16, dtype=torch.float64)
    sum(layer.q(x).square().sum() for layer in model.layers).backward()
    whole = state["q-16x16-3.A"].grad.clone()
    parts = torch.zeros_like(whole)
    for layer in model.layers:
        state["q-16x16-3.A"].grad = None
        layer.q(x).square().sum().backward()
        parts += state["q-16x16-3.A"].grad
    torch.testing.assert_close(whole, parts)
    assert state["v-16x16-3.A"].grad is None


def test_uni_lora_is_an_isometry_over_the_whole_model():
    method = UniLoRA(r=2, d=50)
    _, adapted = attached(method)
    state = adapted.state()
    index = torch.cat([state[f"layers.{k}.{w}.I"] for k in range(3) for w in "qv"])
    count = torch.bincount(index, minlength=50)
    assert count.sum() == 6 * 2 * 32 and count.max() - count.min() == 1
    P = torch.zeros(len(index), 50, dtype=torch.float64)
    P[torch.arange(len(index)), index] = state["rank2.c"][index]
    torch.testing.assert_close(P.mT @ P, torch.eye(50, dtype=P.dtype))
    assert [k for k in adapted.trainable()] == ["rank2.theta"]
    assert not torch.equal(state["layers.0.q.I"], state["layers.1.q.I"])


def test_uni_lora_counts_where_theta_is_longer_than_the_factors():
    _, adapted = attached(UniLoRA(r=1, d=400))
    c = adapted.state()["rank1.c"]
    assert (c == 1).sum() == 6 * 32 and (c == 0).sum() == 400 - 6 * 32


def test_frod_shares_v_within_a_kind_and_splits_w_exactly():
    model, adapted = attached(FRoD(rate=0.1), size=0.0)
    state = adapted.state()
    assert [k for k in state if k.endswith(".V")] == ["q-16.V", "v-16.V"]
    i = state["q-16.I"]
    assert len(i) == len(i.unique()) == 25 and (i // 16 != i % 16).all()
    for k in range(3):
        U, L = state[f"layers.{k}.q.U"], state[f"layers.{k}.q.Lambda"]
        torch.testing.assert_close(U.square().sum(0), torch.ones(16, dtype=U.dtype))
        torch.testing.assert_close(U @ torch.diag(L) @ state["q-16.V"].mT, model.layers[k].q.weight.detach())


def test_frod_of_singular_weights():
    model = net()
    with torch.no_grad():
        for layer in model.layers:
            layer.q.weight[:, 3] = 0
    x = torch.randn(4, 16, dtype=torch.float64)
    want = model.layers[1].q(x)
    deltaw.attach(model, Plan(FRoD(), targets=["q"]))
    torch.testing.assert_close(model.layers[1].q(x), want, rtol=1e-6, atol=1e-6)


# ---- chance


def test_pvera_samples_around_its_mean_in_training_only():
    torch.manual_seed(3)
    model, adapted = attached(PVeRA(r=4))
    layer, x = model.layers[0].q, torch.randn(16, dtype=torch.float64)
    p = adapted.state()
    A, B, b, d = p["model.A"], p["model.B"], p["layers.0.q.b"], p["layers.0.q.d"]
    mu, logvar = (d * (A @ x)).chunk(2)
    model.eval()
    mean = layer(x)
    torch.testing.assert_close(mean, layer.weight @ x + layer.bias + b * (B @ mu))
    model.train()
    with torch.no_grad():
        y = layer(x.expand(40000, 16))
    assert not torch.equal(y[0], y[1]) and not torch.equal(layer(x), layer(x))
    L = b[:, None] * B * (0.5 * logvar).exp()
    covariance = L @ L.mT
    torch.testing.assert_close(y.mean(0), mean, rtol=0, atol=6 * float(covariance.diagonal().max() / 40000) ** 0.5)
    torch.testing.assert_close(y.T.cov(), covariance, rtol=0, atol=0.05 * float(covariance.diagonal().max()))
    layer(x).sum().backward()
    assert adapted.trainable()["layers.0.q.d"].grad[4:].any()
    torch.testing.assert_close(adapted.merge().model().layers[0].q(x), mean)  # exported in training mode: still the mean


def test_nola_draws_from_counters_and_leaves_the_generator_alone():
    model, adapted = attached(NOLA(r=2, k=7))
    state, before = adapted.state(), torch.get_rng_state()
    first, again = (delta(model, adapted, "layers.0.q") for _ in range(2))
    assert torch.equal(first, again) and first.any()
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(state["layers.0.q.z"], state["layers.1.q.z"])
    x = torch.randn(3, 16, dtype=torch.float64)
    model.layers[0].q(x).square().sum().backward()
    alpha, beta = (state[f"layers.0.q.{w}"].detach().clone().requires_grad_() for w in ("alpha", "beta"))
    bases = [torch.stack([basis(int(s), i, shape) for i in range(7)]) / 7**0.5 for s, shape in zip(state["layers.0.q.z"], ((2, 16), (16, 2)))]
    A = state["layers.0.q.A0"] + torch.einsum("k,kij->ij", alpha, bases[0])
    D = 0.5 * torch.einsum("k,kij->ij", beta, bases[1]) @ A
    (x @ (model.layers[0].q.weight + D).mT + model.layers[0].q.bias).square().sum().backward()
    torch.testing.assert_close(state["layers.0.q.alpha"].grad, alpha.grad)
    torch.testing.assert_close(state["layers.0.q.beta"].grad, beta.grad)


def test_what_is_not_stored(tmp_path):
    """Bases and indices that follow from a seed are checksums; the coefficients are what is in the file."""
    from safetensors.torch import load_file

    for k, (method, kept) in enumerate([(NOLA(r=2, k=5), {"alpha", "beta"}), (TeRA(r=3), {"d1", "d2", "d3", "d4"})]):
        _, adapted = attached(method)
        adapted.save(tmp_path / str(k))
        assert {n.rpartition(".")[2] for n in load_file(tmp_path / str(k) / "adapter_model.safetensors")} == kept


# ---- rank and count


def test_high_ranks_from_few_numbers():
    for method, rank, count in ((TeRA(r=3), 9, 12), (RandLoRA(r=4, alpha=4), 16, 4 * (4 + 16)), (RandLoRA(r=8, alpha=8), 16, 2 * (8 + 16))):
        model, adapted = attached(method)
        D = delta(model, adapted, "layers.1.v")
        assert torch.linalg.matrix_rank(D, rtol=1e-9) == rank
        assert sum(t.numel() for k, t in adapted.trainable().items() if k.startswith("layers.1.v.")) == count


def test_vb_lora_tiles_are_mixtures_of_k_vectors():
    _, adapted = attached(VBLoRA(r=2, h=9, b=4, k=2))
    B, A = (t for t in adapted.to_lora().factors["layers.0.q"])
    bank = adapted.state()["model.V"].detach()
    for tile in [*A.detach().reshape(-1, 4), *B.detach().mT.reshape(-1, 4)]:
        gaps = []
        for i in range(9):
            for j in range(i):
                span = bank[i] - bank[j]
                w = ((tile - bank[j]) @ span / (span @ span)).clamp(0, 1)
                gaps.append(float((tile - bank[j] - w * span).norm()))
        assert min(gaps) < 1e-9


# ---- OSF


def test_osf_gradients_stay_out_of_the_kept_block_and_sgd_keeps_it():
    model, adapted = attached(OSF(top=5), size=0.0)
    W = model.layers[0].q.weight.detach().clone()
    x = torch.randn(9, 16, dtype=torch.float64)
    optimizer = torch.optim.SGD(adapted.trainable().values(), lr=1e-2)
    p = {k.rpartition(".")[2]: t for k, t in adapted.state().items() if k.startswith("layers.0.q.")}
    for _ in range(3):
        optimizer.zero_grad()
        (model.layers[0].q(x) - x.flip(1)).square().sum().backward()
        assert p["U"].grad.abs().max() > 1e-3
        assert (p["Uh"].mT @ p["U"].grad).abs().max() < 1e-10 and (p["V"].grad @ p["Vh"].mT).abs().max() < 1e-10
        optimizer.step()
    D = delta(model, adapted, "layers.0.q")
    assert D.norm() > 1e-3 * W.norm()
    for part in (p["Uh"].mT @ D, D @ p["Vh"].mT):  # what the kept directions do has not changed
        assert part.abs().max() < 1e-9


# ---- AdaMSS


def test_adamss_groups_are_those_of_nearest_centres_and_the_bias_moves():
    model, adapted = attached(AdaMSS(R=6, K=3, rk=2))
    p = {k.rpartition(".")[2]: t for k, t in adapted.state().items() if k.startswith("layers.0.q.")}
    full = torch.cat([model.layers[0].q.weight, model.layers[0].q.bias[:, None]], 1).detach()
    U = torch.nn.functional.normalize(full @ p["V"].mT, dim=0)
    centres = torch.stack([U[p["group"] == k].mean(0) for k in range(3)])
    assert (torch.cdist(U, centres).argmin(1) == p["group"]).double().mean() > 0.9
    merged = adapted.merge().model().layers[0]
    rows = torch.stack([p["B"][i] @ p["A"][p["group"][i]] @ p["V"] for i in range(16)])
    torch.testing.assert_close(merged.q.bias - model.layers[0].q.bias, rows[:, 16])
    torch.testing.assert_close(merged.q.weight - model.layers[0].q.weight, rows[:, :16])
    assert merged.v.bias is None and p["V"].shape == (6, 17)


# ---- sizes that do not fit


@pytest.mark.parametrize(
    "method, kind, words",
    [(PSOFT(r=17), ShapeError, "r = 17"), (PSOFT(r=1), ShapeError, "2 <= r"), (TinyLoRA(r=17), ShapeError, "singular values"),
     (TinyLoRA(u=0), SpecError, "u must"), (VBLoRA(b=5), ShapeError, "must divide"), (VBLoRA(b=4, h=3, k=5), SpecError, "k = 5"),
     (OSF(top=16), ShapeError, "0 < top < 16"), (AdaMSS(R=40), ShapeError, "R <= 16"), (NOLA(k=0), SpecError, "k must"),
     (RandLoRA(r=0), SpecError, "r must"), (UniLoRA(d=0), SpecError, "d must"), (TeRA(r=0), SpecError, "r must"),
     (TiedLoRA(r=0), SpecError, "r must"), (PVeRA(r=0), SpecError, "r must")],
)  # fmt: skip
def test_sizes_that_do_not_fit(method, kind, words):
    with pytest.raises(kind, match=words):
        deltaw.attach(net(), Plan(method, targets=["q"]))


def test_pvera_does_not_pretend_on_experts():
    from deltaw.testing.tiny import places

    found = [(model, targets) for name, (model, targets) in places().items() if "expert" in name]
    assert found
    for model, targets in found:
        with pytest.raises(SpecError, match="experts"):
            deltaw.attach(model, Plan(PVeRA(r=2), targets=targets))


def test_asa_trains_fewer_and_fewer_groups():
    """Against the definition, in plain loops; what is left out stands still although Adam has momentum and decay."""
    rule = ASA(target=4, begin=2, end=10, every=3, power=1.0)
    model, adapted = attached(AdaMSS(R=6, K=3), size=0.2, rules=(rule,))
    optimizer = adapted.optimizer(lr=1e-2, weight_decay=0.1)
    x, trained, state = torch.randn(20, 16, dtype=torch.float64), adapted.trainable(), adapted.state()
    sites = [f"layers.{k}.{w}" for k in range(3) for w in "qv"]
    means, far = ({n: torch.zeros_like(t) for n, t in trained.items()} for _ in range(2))
    live, history = {(s, k) for s in sites for k in range(3)}, []
    for step in range(1, 13):
        before = {n: t.detach().clone() for n, t in trained.items()}
        optimizer.zero_grad()
        h = x
        for layer in model.layers:
            h = torch.tanh(layer.q(h)) + layer.v(h)
        (h - x.flip(0)).square().mean().backward()
        optimizer.step()
        for s in sites:
            g = state[f"{s}.group"]
            for k in range(3):
                rows = torch.cat([trained[f"{s}.A"][k].flatten(), trained[f"{s}.B"][g == k].flatten()])
                old = torch.cat([before[f"{s}.A"][k].flatten(), before[f"{s}.B"][g == k].flatten()])
                assert torch.equal(rows, old) == ((s, k) not in live), (step, s, k)
        if not 2 <= step <= 10:
            continue
        for n, t in trained.items():
            now = (t * t.grad).abs().detach()
            far[n] = 0.85 * far[n] + 0.15 * (now - means[n]).abs()
            means[n] = 0.85 * means[n] + 0.15 * now
        if step % 3 == 0:
            score = {}
            for s, k in live:
                rows = state[f"{s}.group"] == k
                score[s, k] = (means[f"{s}.A"] * far[f"{s}.A"])[k].mean() + (means[f"{s}.B"] * far[f"{s}.B"])[rows].mean()
            live = set(sorted(score, key=lambda key: -score[key])[: int(4 + 14 * (1 - (step - 2) / 8))])
            history.append(len(live))
            means, far = ({n: torch.zeros_like(t) for n, t in trained.items()} for _ in range(2))
    assert history == [16, 11, 5]


def test_asa_needs_groups():
    _, adapted = attached(TiedLoRA(r=2), rules=(ASA(),))
    with pytest.raises(SpecError, match="groups"):
        adapted.optimizer(lr=1e-2)
