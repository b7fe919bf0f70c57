"""Initialisations that look at data, against HF PEFT's: the statistic measured by each, and the start made of it."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import inspect
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from train_kit import tiny_model

import deltaw
from deltaw import Plan, Stats
from deltaw.methods import LoRA, RsLoRA
from deltaw.methods.init.corda import CorDA
from deltaw.methods.init.eva import EVA
from deltaw.methods.init.loftq import alternated
from deltaw.methods.init.lora_ga import LoRAGA
from deltaw.methods.nf4 import nf4
from deltaw.testing.laws.base import gap
from deltaw.testing.tiny import One, Tiny, settle, values

peft = pytest.importorskip("peft")

R, ALPHA = 4, 10.0
NAMES = {"stable": "stable", "gd": "gd_scale", "unit": "unit", "weightS": "weight_svd"}


def texts(count, rows=1, length=24):
    g = torch.Generator().manual_seed(0)
    ids = [torch.randint(0, 256, (rows, length), generator=g) for _ in range(count)]
    return [{"input_ids": i, "attention_mask": torch.ones_like(i), "labels": i.clone()} for i in ids]


def same_start(ours, theirs, model, tol, apart=False):
    """Factors up to the sign of each pair (apart: of each vector, where A and B come from different triplets), and the base
    with its constant."""
    for name, entry in ours.entries().items():
        layer = theirs.base_model.model.get_submodule(name)
        A, B = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
        sign = torch.sign((entry.get("A") * A).sum(1))
        other = torch.sign((entry.get("B") * B).sum(0)) if apart else sign
        assert gap(entry.get("A"), A * sign[:, None]) < tol, name
        assert gap(entry.get("B"), B * other) < tol, name
        moved = entry.get("offset.B") @ ((sign * other)[:, None] * entry.get("offset.A"))
        assert gap(moved, layer.base_layer.weight - model.get_submodule(name).weight) < tol, name


def gradient_step(model, data):
    for batch in data:
        model(**batch).loss.backward()


def test_lora_ga_measures_the_gradient_of_peft():
    from peft.tuners.lora.loraga import preprocess_loraga

    data, plan = texts(3), Plan(LoRA(R, ALPHA), targets=["q_proj", "down_proj"], init="lora_ga")
    stats = deltaw.probe(tiny_model(), data, plan)
    other = tiny_model()
    config = peft.LoraConfig(
        r=R, target_modules=["q_proj", "down_proj"], init_lora_weights="lora_ga", lora_ga_config=peft.LoraGAConfig()
    )
    preprocess_loraga(other, config, lambda: gradient_step(other, data))
    for name, found in stats.sites.items():
        assert gap(found["gradient"], other.get_submodule(name)._peft_loraga_grad) < 1e-5


@pytest.mark.parametrize("scale", list(NAMES))
@pytest.mark.parametrize("direction", ["ArB2r", "A2rBr", "ArBr"])
def test_lora_ga_of_peft(direction, scale):
    torch.manual_seed(0)  # PEFT's sketches
    model = settle(Tiny(), torch.float32)
    stats = {
        f"blocks.{i}.{w}": values(*s, name=f"{i}{w}", dtype=torch.float32)
        for i in (0, 1)
        for w, s in (("sq", (16, 16)), ("up", (24, 16)))
    }
    other = copy.deepcopy(model)
    for name, G in stats.items():
        other.get_submodule(name)._peft_loraga_grad = G
    config = peft.LoraConfig(
        r=R, lora_alpha=ALPHA, target_modules=["sq", "up"], init_lora_weights="lora_ga",
        lora_ga_config=peft.LoraGAConfig(direction=direction, scale=NAMES[scale]),
    )  # fmt: skip
    theirs = peft.get_peft_model(other, config)
    plan = Plan(LoRA(R, ALPHA), init=LoRAGA(direction, scale, mode="peft"))
    ours = deltaw.attach(model, plan, stats=Stats({k: {"gradient": G} for k, G in stats.items()}))
    tol = (
        1e-2 if scale == "weightS" else 1e-4
    )  # PEFT's largest singular value of W is from a random sketch of r columns
    same_start(ours, theirs, model, tol, apart=True)


@pytest.mark.parametrize("mode", ["ipm", "kpm"])
def test_corda_of_peft(mode, monkeypatch):
    if importlib.util.find_spec("attr") is None:  # PEFT takes its `dataclass` from a package that it does not ask for
        monkeypatch.setitem(sys.modules, "attr", SimpleNamespace(dataclass=dataclasses.dataclass))
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    model, data = tiny_model(), texts(6, length=40)
    plan = Plan(LoRA(R, ALPHA), targets=["q_proj", "down_proj"], init=CorDA(mode))
    stats = deltaw.probe(model, data, plan)
    other = tiny_model()
    config = peft.LoraConfig(
        r=R,
        lora_alpha=ALPHA,
        target_modules=["q_proj", "down_proj"],
        init_lora_weights="corda",
        corda_config=CordaConfig(corda_method=mode),
    )

    def run():
        for batch in data:
            other(**{k: v for k, v in batch.items() if k != "labels"})

    preprocess_corda(other, config, run)
    theirs = peft.get_peft_model(other, config)
    ours = deltaw.attach(model, plan, stats=stats)
    same_start(ours, theirs, model, 2e-3 if mode == "kpm" else 2e-4)  # the smallest triplets are known least
    assert gap(model(**data[0]).logits, theirs(**data[0]).logits) < 1e-4


@pytest.mark.parametrize("rho", [1.0, 2.0])
@pytest.mark.parametrize("whiten", [False, True])
def test_eva_of_peft(monkeypatch, rho, whiten):
    """A and ranks, with PEFT's random sketch replaced by an exact decomposition."""
    from peft import EvaConfig
    from peft.tuners.lora import eva
    from peft.utils.incremental_pca import IncrementalPCA

    monkeypatch.setattr(eva, "IncrementalPCA", lambda n_components, **_: IncrementalPCA(n_components))
    model, data, targets = tiny_model(), texts(4, rows=3), ["down_proj", "o_proj"]
    if not whiten:  # PEFT divides again for every layer that reads the same input
        targets += ["q_proj", "k_proj"]
    config = peft.LoraConfig(
        r=R,
        lora_alpha=ALPHA,
        target_modules=targets,
        init_lora_weights="eva",
        eva_config=EvaConfig(rho=rho, tau=0.99, whiten=whiten),
    )
    want = eva.get_eva_state_dict(model, data, config, show_progress_bar=False)
    plan = Plan(LoRA(R, ALPHA), targets=targets, init=EVA(rho, 0.99, whiten))
    ours = deltaw.attach(model, plan, stats=deltaw.probe(model, data * 25, plan))
    ranks = {a.site.name: a.method.r for a in ours.assignments}
    assert sum(len(v) for v in want.values()) == sum(ranks.values()) == 2 * len(targets) * R
    for layer in (
        () if whiten else (0, 1)
    ):  # which of the layers that read the same input gets how many is nobody's choice
        at = f"model.layers.{layer}.self_attn"
        pair = [
            sorted(f(f"{at}.{w}") for w in ("q_proj", "k_proj"))
            for f in (lambda n: len(want[n]), lambda n: ranks.get(n, 0))
        ]
        assert pair[0] == pair[1]
    for name, entry in ours.entries().items():
        r = min(len(want[name]), ranks[name])
        if name.endswith(("o_proj", "down_proj")):
            assert len(want[name]) == ranks[name]
        A = entry.get("A")[:r]
        sign = torch.sign((A * want[name][:r]).sum(1))
        assert gap(A, want[name][:r] * sign[:, None]) < 1e-4, name
        assert not entry.get("B").any()


# ---- LoftQ


def theirs_on_the_cpu():
    """PEFT's function, which names its device."""
    import peft.utils.loftq_utils as module

    names = dict(vars(module))
    exec(inspect.getsource(module.loftq_init).replace('"cuda"', '"cpu"'), names)
    return names["loftq_init"]


@pytest.mark.parametrize("T", [1, 2, 4])
def test_loftq_of_peft(T):
    pytest.importorskip("bitsandbytes")
    W = values(
        64, 128, name="w", std=0.05, dtype=torch.float32
    )  # rows of whole blocks: others bitsandbytes 0.50 reads wrongly on a CPU
    Q, A, B = theirs_on_the_cpu()(W, 4, 8, T)
    base = nf4(alternated(W, 8, T, nf4))
    assert gap(base, Q) < 1e-6
    model = nn.ModuleDict({"a": nn.Linear(128, 64, bias=False)})
    model["a"].weight.data = base
    plan = Plan(LoRA(8, 8.0), targets=["a"], init="loftq")
    entry = deltaw.attach(model, plan, stats=deltaw.probe(model, (), plan, original={"a.weight": W})).entries()["a"]
    assert gap(entry.get("B") @ entry.get("A"), B @ A) < 1e-4


def test_loftq_gets_nearer_with_every_round_and_is_exact_for_every_scale():
    W, left = values(64, 128, name="w", std=0.05), []
    for T in (1, 2, 3, 5, 8):
        model = settle(One(64, 128, bias=False), torch.float64)
        model.blocks[0].weight.data = nf4(alternated(W, 8, T, nf4))
        plan = Plan(RsLoRA(8, 7.0), targets=["blocks.0"], init="loftq")
        adapted = deltaw.attach(model, plan, stats=deltaw.probe(model, (), plan, original={"blocks.0.weight": W}))
        ((B, A),) = adapted.to_lora().factors.values()
        error = torch.linalg.svdvals(W - model.blocks[0].weight)[8:].norm()
        torch.testing.assert_close((W - model.blocks[0].weight - B @ A).norm(), error, rtol=1e-6, atol=0)
        left.append(error.item())
    assert left == sorted(left, reverse=True) and left[-1] < 0.9 * left[0]


def test_loftq_on_a_layer_of_bitsandbytes():
    bnb = pytest.importorskip("bitsandbytes")
    W, x = values(64, 128, name="w", std=0.05, dtype=torch.float32), values(5, 128, name="x", dtype=torch.float32)
    model = nn.ModuleDict({"a": bnb.nn.Linear4bit(128, 64, bias=False, quant_type="nf4", compress_statistics=False)})
    model["a"].weight = bnb.nn.Params4bit(W.clone(), requires_grad=False, quant_type="nf4", compress_statistics=False)
    model = model.to("cpu")
    call = partial(lambda: model["a"](x))
    before = gap(call(), x @ W.mT)
    plan = Plan(LoRA(16), targets=["a"], init="loftq")
    adapted = deltaw.attach(model, plan, stats=deltaw.probe(model, (), plan, original={"a.weight": W}))
    assert gap(call(), x @ W.mT) < 0.9 * before
    adapted.detach()
    assert gap(call(), x @ W.mT) == before
