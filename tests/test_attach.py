"""Several adapters on one model: names, activation, mixing, taking off; optimisers; conversion."""

import copy
import pickle

import pytest
import torch
from test_plan import Net
from test_sites import same, snapshot, stir
from torch import nn

import deltaw
from deltaw.errors import NotMergeable, ShapeError, SpecError, TargetError
from deltaw.methods import DoRA, LoRA, RsLoRA
from deltaw.session import session


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Net(2).double()


IDS = torch.arange(12).reshape(3, 4) % 10


def test_base_keys_classes_and_signatures_stay(model):
    before, kinds = snapshot(model), {n: type(m) for n, m in model.named_modules()}
    adapted = deltaw.attach(model, deltaw.Plan(LoRA(r=2)))
    now = model.state_dict()
    assert all(torch.equal(now[k], v) for k, v in before.items())
    assert all(".deltaw." in k for k in now if k not in before)
    assert all(type(m) is kinds[n] for n, m in model.named_modules() if n in kinds)
    assert isinstance(model.layers[0].q_proj, nn.Linear)
    assert not any(p.requires_grad for n, p in model.named_parameters() if ".deltaw." not in n)
    adapted.detach()
    assert same(model, before) and all(p.requires_grad for p in model.parameters())


def test_frozen_flags_of_the_base_come_back_as_they_were(model):
    model.embed.weight.requires_grad_(False)
    deltaw.attach(model, deltaw.Plan(LoRA(r=2))).detach()
    assert not model.embed.weight.requires_grad and model.lm_head.weight.requires_grad


def test_adapters_sum_with_weights_and_the_newest_is_live(model):
    y0 = model(IDS)
    a = deltaw.attach(model, deltaw.Plan(LoRA(r=2), targets=["lm_head"]), "a")
    stir(a, 1)
    ya = model(IDS)
    b = deltaw.attach(model, deltaw.Plan(DoRA(LoRA(r=3)), targets=["lm_head"]), "b")
    assert torch.allclose(model(IDS), y0)
    stir(b, 2)
    yb = model(IDS)
    with deltaw.activate(model, ["a", "b"], [0.5, -2.0]):
        assert torch.allclose(model(IDS), y0 + 0.5 * (ya - y0) - 2.0 * (yb - y0))
    assert torch.equal(model(IDS), yb)
    deltaw.activate(model, "a")
    assert torch.equal(model(IDS), ya)
    deltaw.activate(model, [])
    assert torch.equal(model(IDS), y0)
    b.detach()
    a.detach()
    assert torch.equal(model(IDS), y0)


def test_a_tensor_weight_gets_its_gradient(model):
    a = deltaw.attach(model, deltaw.Plan(LoRA(r=2), targets=["lm_head"]), "a")
    stir(a)
    w = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    with deltaw.activate(model, ["a"], [w]):
        model(IDS).sum().backward()
    assert w.grad is not None and w.grad != 0


def test_mixed_batches_equal_each_row_alone(model):
    made = {
        "low": deltaw.attach(model, deltaw.Plan(LoRA(r=2)), "low"),
        "high": deltaw.attach(model, deltaw.Plan(RsLoRA(r=5), targets=["q_proj", "embed"]), "high"),
        "dora": deltaw.attach(model, deltaw.Plan(DoRA(LoRA(r=2)), targets=["v_proj", "lm_head"]), "dora"),
    }
    for k, adapted in enumerate(made.values()):
        stir(adapted, k)
    batch = torch.randint(0, 10, (6, 4))
    order = ["low", None, "high", "dora", "low", "high"]
    with deltaw.rows(model, order):
        mixed = model(batch)
        mixed.sum().backward()
    for i, name in enumerate(order):
        with deltaw.activate(model, [name] if name else []):
            assert torch.allclose(model(batch[i : i + 1])[0], mixed[i], atol=1e-12), name
    assert all(p.grad is not None for a in made.values() for p in a.trainable().values())
    with torch.no_grad(), deltaw.rows(model, order):
        assert torch.allclose(model(batch), mixed) and torch.allclose(model(batch), mixed)  # the second reads the bank
    with pytest.raises(ShapeError, match="6 rows here; deltaw.rows was told of 4"), deltaw.rows(model, ["low"] * 4):
        model(batch)


def test_one_gather_whatever_the_number_of_adapters(model):
    for k in range(5):
        stir(deltaw.attach(model, deltaw.Plan(LoRA(r=k + 1), targets=["lm_head"]), f"a{k}"), k)
    from torch.profiler import ProfilerActivity, profile

    def products(names):
        with torch.no_grad(), deltaw.rows(model, names), profile(activities=[ProfilerActivity.CPU]) as seen:
            model(torch.zeros(len(names), 4, dtype=torch.long))
        return sum(e.count for e in seen.key_averages() if e.key == "aten::bmm")

    assert products([f"a{k}" for k in range(5)]) == products(["a0"] * 5) == 2


def test_names_are_checked(model):
    deltaw.attach(model, deltaw.Plan(LoRA(r=2)), "math")
    with pytest.raises(SpecError, match="already attached"):
        deltaw.attach(model, deltaw.Plan(LoRA(r=2)), "math")
    with pytest.raises(TargetError, match="no adapter 'maths' is attached; nearest: math"):
        deltaw.activate(model, "maths")
    with pytest.raises(SpecError, match="letters"):
        deltaw.attach(model, deltaw.Plan(LoRA(r=2)), "../math")
    with pytest.raises(SpecError, match="nothing is attached"):
        deltaw.disabled(nn.Linear(2, 2))
    with pytest.raises(SpecError, match="2 adapters need 2 weights|1 adapters need 1 weights"):
        deltaw.activate(model, ["math"], [1.0, 2.0])


def test_copies_and_pickles_keep_their_own_adapters(model):
    a = deltaw.attach(model, deltaw.Plan(LoRA(r=2)))
    stir(a)
    y = model(IDS)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(IDS), y)
        (mine,) = deltaw.adapters(other)
        stir(mine, 5)
        assert not torch.equal(other(IDS), y) and torch.equal(model(IDS), y)
        mine.detach()
    assert torch.equal(model(IDS), y)


def test_copies_are_no_deeper_with_more_layers():
    """Sites of a method know each other; a copy that walked from one to the next would meet Python's limit of calls at 30 layers."""
    tall = nn.Sequential(*[nn.Linear(4, 4) for _ in range(400)])
    adapted = deltaw.attach(tall, deltaw.Plan(LoRA(r=2)))
    stir(adapted)
    x = torch.randn(3, 4)
    assert torch.equal(copy.deepcopy(tall)(x), tall(x))
    torch.testing.assert_close(adapted.merge().model()(x), tall(x), rtol=1e-3, atol=0.0)  # 400 layers of rounding


def test_scale_and_factors_can_change_between_merges_because_a_merge_is_a_copy(model):
    """PEFT's silent failure: change the scale or the factors while merged, and unmerge restores a wrong base."""
    before = snapshot(model)
    a = deltaw.attach(model, deltaw.Plan(LoRA(r=2)))
    stir(a)
    merged = a.merge(IDS)
    first = merged.model()(IDS)
    stir(a, 9)
    assert torch.allclose(a.merge(IDS).model()(IDS), model(IDS))
    assert not torch.allclose(first, model(IDS))
    a.detach()
    assert same(model, before)


def test_merge_reports_what_half_precision_loses():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64)).bfloat16()
    a = deltaw.attach(model, deltaw.Plan(LoRA(r=2)))
    with torch.no_grad():
        a.entries()["0"].B.fill_(1e-6)
    assert a.merge(torch.randn(2, 64).bfloat16()).certificate.lost > 0.9
    with torch.no_grad():
        a.entries()["0"].B.fill_(1.0)
    assert a.merge(torch.randn(2, 64).bfloat16()).certificate.lost < 0.1


def test_conversion_is_exact_where_it_says_so_and_tells_its_error_otherwise(model):
    a = deltaw.attach(model, deltaw.Plan(LoRA(r=4), targets=["q_proj"]))
    stir(a)
    exact = a.to_lora()
    assert exact.rank == 4 and set(exact.error.values()) == {0.0}
    w = model.layers[0].q_proj
    B, A = exact.factors["layers.0.q_proj"]
    assert torch.allclose(a.merge().model().layers[0].q_proj.weight, w.weight + B @ A)
    cut = a.to_lora(rank=2)
    S = torch.linalg.svdvals((B @ A).detach())
    assert cut.rank == 2
    assert cut.error["layers.0.q_proj"] == pytest.approx(float(S[2:].norm() / S.norm()), rel=1e-9)
    d = deltaw.attach(model, deltaw.Plan(DoRA(LoRA(r=2)), targets=["q_proj"]), "d")
    stir(d)
    with pytest.raises(NotMergeable, match="no exact low-rank factors"):
        d.to_lora()
    assert 0 < d.to_lora(rank=3).error["layers.0.q_proj"] < 1
    assert d.to_lora(rank=8).error["layers.0.q_proj"] < 1e-12


def test_adapters_of_half_precision_bases_are_float32_masters_and_cast_per_call(model):
    model = model.bfloat16()
    y0 = model(IDS)
    a = deltaw.attach(model, deltaw.Plan(DoRA(LoRA(r=2))))
    assert {p.dtype for p in a.trainable().values()} == {torch.float32}
    y = model(IDS)
    assert y.dtype == torch.bfloat16 and torch.allclose(y, y0, atol=0.05)


def test_the_optimizer_is_keyed_by_name(model):
    a = deltaw.attach(model, deltaw.Plan(LoRA(r=2), targets=["lm_head"]))
    opt = a.optimizer(lr=1e-2)
    assert opt.state_dict()["param_groups"][0]["param_names"] == ["lm_head.A", "lm_head.B"]
    y = [float(model(IDS).square().mean().detach())]
    for _ in range(20):
        opt.zero_grad()
        loss = model(IDS).square().mean()
        loss.backward()
        opt.step()
    assert float(model(IDS).square().mean()) < 0.9 * y[0]


def test_same_bits_whatever_the_order_of_sites_and_the_global_seed(model):
    torch.manual_seed(1)
    a = deltaw.attach(model, deltaw.Plan(LoRA(r=2), targets=["q_proj", "v_proj"]))
    one = {k: v.clone() for k, v in a.state().items()}
    a.detach()
    torch.manual_seed(2)
    b = deltaw.attach(model, deltaw.Plan(LoRA(r=2), targets=["v_proj"]))
    assert all(torch.equal(v, one[k]) for k, v in b.state().items())
    b.detach()
    c = deltaw.attach(model, deltaw.Plan(LoRA(r=2), targets=["v_proj"], seed=1))
    assert not torch.equal(c.state()["layers.0.v_proj.A"], one["layers.0.v_proj.A"])


def test_meta_device():
    with torch.device("meta"):
        model = Net(1)
    for init in (None, "pissa"):
        a = deltaw.attach(model, deltaw.Plan(DoRA(LoRA(r=2)), init=init))
        assert all(t.device.type == "meta" for t in a.state().values())
        a.detach()


def test_autocast_leaves_the_formula_in_full_precision(model):
    """Under autocast the activations are bfloat16; row norms and the like must not be."""
    model = model.float()
    a = deltaw.attach(model, deltaw.Plan(DoRA(LoRA(r=2))))
    stir(a)
    y = model(IDS)
    norms = []
    site = a.assignments[0].site
    original, place = type(site).run, session(model).places[site.name]

    def run(self, L, call, args, kwargs):
        norms.append(L.op.parts[0].v)
        return original(self, L, call, args, kwargs)

    type(site).run = run
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = model(IDS)
    finally:
        type(site).run = original
    assert torch.allclose(half.float(), y, atol=0.1 * float(y.detach().abs().max()))
    exact = a.entries()[site.name].g / (place.base.module.weight + combined(a, site)).norm(dim=1)
    assert torch.allclose(norms[0], exact, rtol=1e-5)


def combined(adapted, site):
    e = adapted.entries()[site.name]
    return 4.0 * e.B @ e.A
