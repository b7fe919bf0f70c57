"""The optimiser's step: one kernel for all tensors with the same settings, whatever the rule; and what is clipped."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from train_kit import jsonl, pairs, tiny_model, tiny_tokenizer

import deltaw
from deltaw.methods.update import UPDATES
from deltaw.train import run
from deltaw.train.sentinel import Sentinel

TORCH = ["adamw", "lora_plus", "loca"]  # rules that are one of torch's optimisers over groups, not a sentence of the algebra


class Calls(TorchDispatchMode):
    """Counts the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(f.overloadpacket))
        return f(*args, **(kwargs or {}))


def adapted(update: Any = "adamw", **more: Any) -> deltaw.attach.Adapted:
    targets = ["q_proj", "k_proj", "down_proj", "embed_tokens"]
    return deltaw.attach(
        tiny_model(tie_word_embeddings=False), deltaw.Plan("lora", targets=targets, update=update, **more)
    )


def fill(a: Any, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    for p in a.trainable().values():
        p.grad = torch.randn(p.shape, generator=g)


@pytest.mark.parametrize("key", TORCH)
def test_a_step_is_one_call_for_each_setting(key):
    a = adapted(key)
    opt = a.optimizer(1e-2)
    settings = [
        tuple(sorted((k, v) for k, v in g.items() if k not in ("params", "param_names"))) for g in opt.param_groups
    ]
    assert len(set(settings)) == len(settings)
    names = [n for g in opt.param_groups for n in g["param_names"]]
    assert sorted(names) == sorted(a.trainable()) and len(names) > 12
    fill(a, 0)
    opt.step()  # makes the moments
    fill(a, 1)
    with Calls() as calls:
        opt.step()
    assert calls.seen.count("aten._fused_adamw_") == len(settings)
    assert len(calls.seen) <= 4 * len(settings), calls.seen  # nothing that is repeated for each of the tensors


def test_rules_with_equal_settings_have_one_group():
    assert [len(adapted(key).optimizer(1e-3).param_groups) for key in ("adamw", "lora_plus")] == [1, 3]
    one = adapted({"key": "lora_plus", "ratio": 1.0, "embedding_lr": 1e-3}).optimizer(1e-3)
    assert len(one.param_groups) == 1 and one.param_groups[0]["fused"]


@pytest.mark.parametrize("key", TORCH)
@pytest.mark.parametrize("kw", [{"fused": False}, {"foreach": True}, {"foreach": False}])
def test_the_same_steps_and_the_callers_choice(key, kw):
    a, b = adapted(key), adapted(key)
    one, two = a.optimizer(1e-2, weight_decay=0.1), b.optimizer(1e-2, weight_decay=0.1, **kw)
    assert all(g["fused"] for g in one.param_groups) and not any(g["fused"] for g in two.param_groups)
    assert all(g["foreach"] == kw.get("foreach") for g in two.param_groups)
    for seed in range(3):
        fill(a, seed), fill(b, seed)
        one.step(), two.step()
    for name, p in a.trainable().items():
        torch.testing.assert_close(p, b.trainable()[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("key", TORCH)
def test_where_torch_has_no_fused_kernel(key):
    rule = UPDATES[key]()
    for where in ({"device": "meta"}, {"dtype": torch.complex64}):
        p = nn.Parameter(torch.ones(2, 2, **where))
        opt = rule.optimizer({"x.B": p}, 1e-3)
        p.grad = torch.ones_like(p)
        opt.step()
        assert not opt.param_groups[0]["fused"] and int(opt.state[p]["step"]) == 1
    assert rule.optimizer({"x.B": nn.Parameter(torch.ones(2))}, 1e-3, differentiable=True).param_groups[0][
        "differentiable"
    ]
    for wrong in ({"beta": 1}, {"betas": (2.0, 0.9)}):  # not taken for a missing kernel
        with pytest.raises((TypeError, ValueError)):
            rule.optimizer({"x.B": nn.Parameter(torch.ones(2))}, 1e-3, **wrong)


def test_gradients_are_clipped_together_and_their_norm_is_logged(tmp_path, monkeypatch):
    found: dict[float, float] = {}
    logged: dict[float, float] = {}
    for bound in (0.0, 1e-3, 1e6):

        def look(self: Sentinel, bound: float = bound) -> None:  # after clipping, before the step
            norms = [p.grad.norm() for p in self.trained.values()]
            found[bound] = float(torch.stack(norms).norm())

        monkeypatch.setattr(Sentinel, "gradients", look)
        recipe = {
            "data": {"path": jsonl(tmp_path / "rows.jsonl", pairs())},
            "plan": {"method": {"key": "lora", "r": 2}, "targets": ["q_proj", "down_proj"]},
            "train": {"steps": 1, "batch_size": 4, "max_length": 64, "max_grad_norm": bound, "tune_allocator": False},
            "out": str(tmp_path / f"run-{bound}"),
        }
        result = run(recipe, model=tiny_model(), tokenizer=tiny_tokenizer(), progress=False)
        lines = [json.loads(x) for x in (result.dir / "metrics.jsonl").read_text().splitlines()]
        logged[bound] = next(x["grad_norm"] for x in lines if "grad_norm" in x)
    assert logged[0.0] == pytest.approx(logged[1e-3], rel=1e-5) == pytest.approx(logged[1e6], rel=1e-5)
    assert found[0.0] == pytest.approx(logged[0.0], rel=1e-5) == pytest.approx(found[1e6], rel=1e-5)
    assert found[1e-3] == pytest.approx(1e-3, rel=1e-3) and logged[1e-3] > 0.01
