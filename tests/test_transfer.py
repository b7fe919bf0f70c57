"""Hyper-parameter transfer: what muP, u-muP and LoRA's rates do to a model, and that sizes and rates then carry over."""

from __future__ import annotations

import copy
import json
import math
import pickle

import pytest
import torch
from torch import Tensor, nn

import deltaw
from deltaw import Plan, Setting, suggest_lr
from deltaw.errors import ShapeError, SpecError
from deltaw.methods import LoRA
from deltaw.methods.update.adamw import AdamW
from deltaw.methods.update.lora_lr_transfer import LoraLrTransfer
from deltaw.methods.update.mup import MuP
from deltaw.study.coordinates import coordinates
from deltaw.testing.tiny import Conv1D

BASE, WORDS = 16, 13


class Net(nn.Module):
    """A table, a normalised residual layer of twice the width, and a head; drawn as torch draws, or with one std for all."""

    def __init__(self, width: int = BASE, std: float | None = None, tied: bool = False):
        super().__init__()
        self.table, self.norm = nn.Embedding(WORDS, width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.head = nn.Linear(width, WORDS, bias=not tied)
        if std is not None:
            for m in (self.table, self.up, self.down, self.head):
                nn.init.normal_(m.weight, std=std)
        if tied:
            self.head.weight = self.table.weight

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, ids: Tensor) -> Tensor:
        h = self.table(ids)
        return self.head(h + self.down(torch.relu(self.up(self.norm(h)))))  # type: ignore[no-any-return]


IDS = torch.arange(24).remainder(WORDS).reshape(4, 6)
AIM = (IDS * 5 + 1) % WORDS


def loss(model: nn.Module) -> Tensor:
    return nn.functional.cross_entropy(model(IDS).flatten(0, 1), AIM.flatten())


def made(width: int, seed: int = 0, **kw: object) -> Net:
    torch.manual_seed(seed)
    return Net(width, **kw)  # type: ignore[arg-type]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 4) -> Tensor:
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model).backward()
        optimizer.step()
    return model(IDS).detach()


# ---- muP


@pytest.mark.parametrize("std", [None, 0.02])
@pytest.mark.parametrize("delta", [False, True])
def test_at_the_base_it_is_plain_torch(std, delta):
    plain, ours = made(BASE, std=std), made(BASE, std=std)
    rule = deltaw.mup(
        ours, made(BASE, 1), delta=made(40) if delta else None, start="auto" if std is None else "constant"
    )
    want = train(plain, torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.0, fused=True))
    assert torch.equal(train(ours, deltaw.optimizer(ours, rule, 1e-2)), want)


def test_the_start_of_torchs_layers():
    """Their std falls as 1 / sqrt(width) already: matrices stay; the head and linear biases get the base's std back."""
    was, model = made(64), made(64)
    rule = deltaw.mup(model, made(BASE))
    k = 64 / BASE
    for name, p in was.named_parameters():
        factor = k**0.5 if name in ("head.weight", "head.bias", "up.bias", "down.bias") else 1.0
        torch.testing.assert_close(model.get_parameter(name), p * factor, rtol=1e-6, atol=0)
    assert (
        rule.readouts == ("head.weight",)
        and rule.base["up.weight"] == [2 * BASE, BASE]
        and rule.base["head.weight"] == [None, BASE]
    )
    x = torch.randn(3, 64)
    torch.testing.assert_close(model.head(x), nn.functional.linear(x / k, model.head.weight, model.head.bias))


def test_the_start_of_one_std_for_all():
    was, model = made(64, std=0.02), made(64, std=0.02)
    deltaw.mup(model, made(BASE), start="constant", output_mult=3.0)
    for name, p in was.named_parameters():
        torch.testing.assert_close(
            model.get_parameter(name), p * (0.5 if name in ("up.weight", "down.weight") else 1.0)
        )
    x = torch.randn(3, 64)
    torch.testing.assert_close(model.head(x), nn.functional.linear(3 * x / 4, model.head.weight, model.head.bias))


def test_once_and_not_again():
    model = made(32)
    deltaw.mup(model, made(BASE))
    for again in (lambda: deltaw.mup(model, made(BASE)), lambda: deltaw.umup(model)):
        with pytest.raises(SpecError, match="already"):
            again()
    y = model(IDS)
    loaded = made(32, 7)
    deltaw.mup(loaded, made(BASE), fresh=False)  # the factors without the start
    loaded.load_state_dict(model.state_dict())
    assert torch.equal(loaded(IDS), y)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(IDS), y)


def test_a_head_may_start_at_zero():
    model = made(32)
    deltaw.mup(model, made(BASE), zero_readout=True)
    assert not model(IDS).any()
    with pytest.raises(SpecError, match="tied"):
        deltaw.mup(made(32, tied=True), made(BASE, tied=True), zero_readout=True)


def test_a_tied_head_is_a_table():
    was, model = made(32, tied=True), made(32, tied=True)
    rule = deltaw.mup(model, made(BASE, tied=True))
    assert torch.equal(model.table.weight, was.table.weight)
    rates = {n: g["lr"] for g in deltaw.optimizer(model, rule, 0.1).param_groups for n in g["param_names"]}
    assert rates["table.weight"] == 0.1 and rates["up.weight"] == 0.05


def test_a_weight_of_two_layers_is_scaled_once():
    def net(width):
        model = nn.Sequential(nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False))
        model[1].weight = model[0].weight
        return model

    model = net(32)
    before = model[0].weight.detach().clone()
    deltaw.mup(model, net(8), start="constant")
    torch.testing.assert_close(model[0].weight.detach(), before / 2)


def test_a_layer_stored_the_other_way():
    """transformers' Conv1D keeps (n, m): its fan-in is the first dim."""

    def net(width: int) -> nn.Module:
        model = nn.Sequential(Conv1D(2 * width, width), Conv1D(5, 2 * width))
        for p in model.parameters():
            nn.init.normal_(p)
        return model

    torch.manual_seed(0)
    model = net(24)
    before = model[0].weight.detach().clone()
    rule = deltaw.mup(model, net(8), start="constant")
    assert set(rule.turned) == {"0.weight", "1.weight"} and rule.readouts == ("1.weight",)
    torch.testing.assert_close(model[0].weight.detach(), before / 3**0.5)
    assert rule.factor("0.weight", model[0].weight) == 1 / 3 and rule.factor("1.weight", model[1].weight) == 1.0


def test_attention_scores_of_transformers():
    pytest.importorskip("transformers")
    from train_kit import tiny_model

    model, small = (tiny_model(hidden_size=h, intermediate_size=2 * h, head_dim=h // 4) for h in (64, 32))
    rule = deltaw.mup(model, small)
    attention = model.model.layers[0].self_attn
    assert math.isclose(attention.scaling, 8**0.5 / 16)  # 1 / d, and the base's 1 / sqrt d at d = 8
    assert rule.readouts == ("model.embed_tokens.weight",)  # tied
    ids = torch.arange(8)[None]
    h = model.model(ids).last_hidden_state
    torch.testing.assert_close(model(ids).logits, nn.functional.linear(h / 2, model.lm_head.weight))


def test_what_is_no_width_and_what_does_not_fit():
    with pytest.raises(SpecError, match="other parameters"):
        deltaw.base_shapes(nn.Linear(4, 4), nn.Linear(4, 4, bias=False))
    with pytest.raises(ShapeError, match="other dims"):
        deltaw.base_shapes(nn.Conv1d(4, 4, 1), nn.Linear(4, 4))
    rule = MuP(base={"weight": [2, 2], "bias": [2]})
    with pytest.raises(SpecError, match="nearest: weight"):
        rule.factor("weights", torch.empty(4, 4))
    with pytest.raises(ShapeError, match="weight"):
        rule.factor("weight", torch.empty(4))
    with pytest.raises(SpecError, match="one or two dims"):
        MuP(base={"k": [2, 2, 2]}).factor("k", torch.empty(4, 4, 4))


def test_the_rule_is_plain_data_and_wraps_another():
    rule = deltaw.mup(made(32), made(BASE), inner={"key": "lora_plus", "ratio": 4.0})
    plan = Plan(LoRA(2), update=MuP(base={"a": [1, None]}, readouts=("a",), inner=AdamW(weight_decay=0.5)))
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    model = made(32)
    rates = {n: g["lr"] for g in deltaw.optimizer(model, rule, 0.1).param_groups for n in g["param_names"]}
    assert rates["up.weight"] == 0.05 and rates["up.bias"] == 0.4 and rates["norm.weight"] == 0.4


def test_schedules_multiply_every_group():
    model = made(32)
    optimizer = deltaw.optimizer(model, deltaw.mup(model, made(BASE)), 0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    optimizer.step()
    schedule.step()
    assert sorted({g["lr"] for g in optimizer.param_groups}) == [0.025, 0.05]


# ---- sizes over widths


@pytest.fixture(scope="module")
def check():
    return coordinates(lambda w: Net(w), (64, 128, 256, 512), loss, lr={"standard": 0.005, "mup": 0.005, "umup": 0.25}, steps=4, seeds=(0,),
                       parametrisations=("standard", "mup", "umup"))  # fmt: skip


def test_sizes_grow_with_the_width_and_under_mup_they_do_not(check):
    slopes = check.to_dict()["slopes"]
    assert slopes["standard"]["head"] > 0.8 and slopes["standard"]["down"] > 0.5, slopes
    for which in ("mup", "umup"):
        for layer in ("up", "down"):
            assert abs(slopes[which][layer]) < 0.1, slopes
        # what tokens share by chance still falls like 1 / sqrt(width) at these widths; what was learnt about a token stays
        assert -0.25 < slopes[which]["head"] < 0.05, slopes
    assert (
        math.isnan(check.slope("mup", "head", 0)) and abs(check.slope("standard", "head", 0)) < 0.1
    )  # the head of muP starts at zero


def test_umup_starts_at_one():
    model = made(256)
    deltaw.umup(model)
    seen = {}
    for name in ("table", "up", "down"):
        model.get_submodule(name).register_forward_hook(
            lambda m, a, y, n=name: seen.__setitem__(n, float(y.detach().square().mean().sqrt()))
        )
    model(IDS)
    assert abs(seen["table"] - 1) < 0.1 and abs(seen["up"] - 1) < 0.1
    assert abs(seen["down"] - 0.5**0.5) < 0.15  # behind a plain relu, which halves the square
    assert model.up.weight.std().sub(1).abs() < 0.02 and not model.up.bias.any()


def test_the_check_draws_itself(check, tmp_path):
    path = check.write(tmp_path / "c.svg")
    svg = path.read_text()
    assert svg.startswith("<svg") and svg.count('class="curve"') == 3 * 5 - 1 and "mean |activation| of head" in svg
    data = json.loads(json.dumps(check.to_dict()))
    assert set(data["slopes"]) == {"standard", "mup", "umup"} and len(data["rows"]) == 3 * 4 * 5 * len(check.layers)
    tied = coordinates(lambda w: made(w, tied=True), (16, 32), loss, steps=1, seeds=(0,))
    assert tied.layers == check.layers, "a head that is a table does not start at zero, and is measured all the same"
    told: list[tuple[int, int]] = []
    coordinates(lambda w: Net(w), (16, 32), loss, steps=1, seeds=(0,), progress=lambda *t: told.append(t))
    assert told == [(k, 4) for k in (1, 2, 3, 4)]
    with pytest.raises(SpecError, match="two widths"):
        coordinates(lambda w: Net(w), (16,), loss)
    with pytest.raises(SpecError, match="'sp'"):
        coordinates(lambda w: Net(w), (16, 32), loss, parametrisations=("sp",))


def test_the_command(tmp_path, capfd):
    pytest.importorskip("transformers")
    from deltaw.cli import main

    words = [
        "coordinates",
        "--widths",
        "16,32",
        "--steps",
        "1",
        "--seeds",
        "1",
        "--parametrisations",
        "standard,mup,umup",
    ]
    capfd.readouterr()
    assert main([*words, "--lr", "1e-2,1e-2,1", "--out", str(tmp_path / "c.svg"), "--json"]) == 0
    data = json.loads(capfd.readouterr().out)
    assert data["lr"] == {"standard": 0.01, "mup": 0.01, "umup": 1.0} and "lm_head" in data["slopes"]["mup"]
    assert "lm_head" in (tmp_path / "c.svg").read_text()
    assert main([*words, "--lr", "1,2"]) == 2 and main(["coordinates", "--widths", "a"]) == 2
    assert main([*words, "--lr", "1,b,2"]) == 2 and "rates are written" in capfd.readouterr().err


def test_a_model_at_another_width():
    pytest.importorskip("transformers")
    from deltaw.study.widths import at_width, drawn, tiny_config

    config = tiny_config(width=64)
    wide, odd = at_width(config, 128), at_width(config, 72)
    assert (wide.hidden_size, wide.intermediate_size, wide.num_attention_heads, wide.head_dim) == (128, 256, 8, 16)
    assert (odd.hidden_size, odd.num_attention_heads, odd.head_dim) == (72, 4, 18), (
        "the heads' size grows where their number cannot"
    )
    assert drawn(odd).lm_head.weight.shape == (256, 72) and config.hidden_size == 64
    with pytest.raises(SpecError, match="whole number"):
        at_width(config, 65)


# ---- LoRA's rates


KINDS = [Setting(64, 4, 2.0), Setting(64, 4, 2.0, small=True), Setting(64, 4, 2.0, "B"), Setting(64, start="full")]


@pytest.mark.parametrize("source", KINDS, ids=str)
def test_suggestions_are_inverse_and_chain(source):
    for n, r, s in ((256, 4, 2.0), (64, 16, 2.0), (64, 4, 0.25), (1000, 7, 0.3)):
        target = Setting(n, r, s, source.start, source.small)
        there = suggest_lr(3e-4, source, target)
        assert math.isclose(suggest_lr(there, target, source), 3e-4, rel_tol=1e-12)
        third = Setting(2 * n, r + 1, s / 3, source.start, source.small)
        assert math.isclose(suggest_lr(there, target, third), suggest_lr(3e-4, source, third), rel_tol=1e-12)


def test_the_table():
    def ratio(start: str, n: int = 1, r: int = 1, s: float = 1.0, small: bool = False) -> float:
        return suggest_lr(1.0, Setting(64, 4, 1.0, start, small), Setting(64 * n, 4 * r, s, start, small))  # type: ignore[arg-type]

    assert ratio("A", n=4) == ratio("A", r=4) == ratio("A", s=4.0) == 0.5 and ratio("A", r=4, s=0.25) == 1.0
    assert ratio("A", n=4, small=True) == 1.0 and ratio("A", r=4, small=True) == 0.25
    assert ratio("B", n=4) == ratio("B", s=4.0) == 0.25 and ratio("B", r=4) == 1.0 and ratio("B", r=4, s=0.25) == 4.0
    assert ratio("full", n=4) == 0.25 and ratio("full", r=4, s=9.0) == 1.0
    assert suggest_lr(1e-3, Setting(64, 8, 1.0, "B"), Setting(64, start="full")) == 1e-3
    with pytest.raises(SpecError, match="share a law"):
        suggest_lr(1e-3, Setting(64, 8), Setting(64, start="full"))


def right_rate(start: str, n: int, r: int, s: float, steps: int = 10) -> float:
    """The rate at which 10 Adam steps move the output of one linear map by half of what is asked, by bisection."""
    torch.manual_seed(1)
    m, x = 32, torch.randn(16, n)
    aim = torch.randn(16, m)
    A0 = torch.randn(r, n) / n**0.5 if start == "A" else torch.zeros(r, n)
    B0 = torch.randn(m, r) / r**0.5 if start == "B" else torch.zeros(m, r)

    def moved(lr: float) -> float:
        A, B = nn.Parameter(A0.clone()), nn.Parameter(B0.clone())
        opt = torch.optim.Adam([A, B], lr=lr)
        for _ in range(steps):
            opt.zero_grad()
            (s * (x @ A.mT) @ B.mT - 100 * aim).square().mean().backward()  # far away: the direction stays
            opt.step()
        return float((s * (x @ A.mT) @ B.mT).detach().square().mean().sqrt())

    low, high = 1e-7, 10.0
    for _ in range(22):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if moved(middle) < 1.0 else (low, middle)
    return (low * high) ** 0.5


@pytest.mark.parametrize("start, scale", [("A", 0), ("A", 1), ("B", 0)])
def test_the_exponents_show(start, scale):
    """Fitted over factors of 16: s = 1 / r ** scale. From B the law is one for r small against n: the step of B counts too otherwise."""
    n0, r0 = (64, 4) if start == "A" else (512, 2)
    others = ((16 * n0, r0), (n0, 16 * r0))
    at = {(n, r): right_rate(start, n, r, r**-scale) for n, r in ((n0, r0), *others)}
    for n, r in others:
        got = math.log(at[n, r] / at[n0, r0], 16)
        law = suggest_lr(1.0, Setting(n0, r0, r0**-scale, start), Setting(n, r, r**-scale, start))  # type: ignore[arg-type]
        assert abs(got - math.log(law, 16)) < 0.15, (start, scale, n, r, got, math.log(law, 16))


def test_a_plan_carries_the_rate_to_every_site():
    model = nn.ModuleDict({"a": nn.Linear(64, 8), "b": nn.Linear(16, 8)})
    adapted = deltaw.attach(model, Plan(LoRA(r=4, alpha=8.0), update=LoraLrTransfer(n=16, r=4, s=2.0)))
    rates = {n: g["lr"] for g in adapted.optimizer(1e-3).param_groups for n in g["param_names"]}
    assert rates == {"a.A": 5e-4, "a.B": 5e-4, "b.A": 1e-3, "b.B": 1e-3}
