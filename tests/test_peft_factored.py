"""LoRA-FA against HF PEFT: its files are PEFT's LORA, its gradient is that of `create_lorafa_optimizer`."""

from __future__ import annotations

import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from torch import nn

import deltaw
from deltaw import Plan, attach
from deltaw.methods import BlockLoRA, DoRA, Drop, LoRAFA
from deltaw.testing.tiny import Tiny, settle, values

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")
X, AIM = (values(6, 16, name=word, dtype=torch.float64) for word in ("x", "aim"))


def tiny() -> nn.Module:
    model = settle(Tiny(), torch.float64)
    del model.config  # PEFT's save_pretrained takes it for that of a transformers model
    return model


def stepped(model, optimizer, count):
    for _ in range(count):
        optimizer.zero_grad()
        (model(X) - AIM).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("method", [LoRAFA(r=4, alpha=6.0), Drop(LoRAFA(r=4), p=0.2), DoRA(LoRAFA(r=4))], ids=lambda m: m.key)
def test_ours_in_peft_and_back(method, tmp_path):
    model = tiny()
    adapted = attach(model, Plan(method, targets=["sq", "up"]))
    stepped(model, adapted.optimizer(lr=1e-2), 5)
    model.eval()
    adapted.save(tmp_path / "a")
    assert json.load(open(tmp_path / "a" / "adapter_config.json"))["peft_type"] == "LORA"
    again = deltaw.load(ours := tiny(), tmp_path / "a")  # our own card says which factor is frozen
    assert again.plan.method == method and torch.equal(ours(X), model(X))
    assert not again.state()["blocks.0.sq.A"].requires_grad
    judge = peft.PeftModel.from_pretrained(tiny(), tmp_path / "a", autocast_adapter_dtype=False).eval()
    torch.testing.assert_close(judge(X), model(X), rtol=0, atol=1e-5)
    judge.save_pretrained(tmp_path / "b")
    deltaw.load(back := tiny(), tmp_path / "b")
    torch.testing.assert_close(back(X), model(X), rtol=0, atol=1e-5)


def test_what_peft_lacks_says_so(tmp_path):
    attach(tiny(), BlockLoRA(r=4, k=2)).save(tmp_path)
    assert "block_lora" in json.load(open(tmp_path / "deltaw.json"))["peft"]["reason"]


def test_the_projected_gradient_is_that_of_peft(tmp_path):
    """The same tensors, AdamW behind both (eps = 0: PEFT adds it in another place), five steps: the same B."""
    from peft.optimizers import create_lorafa_optimizer

    model = tiny()
    adapted = attach(model, Plan(LoRAFA(r=4, alpha=6.0), targets=["sq", "up"], rules=["lora_fa"]))
    theirs = peft.get_peft_model(
        tiny(), peft.LoraConfig(r=4, lora_alpha=6, target_modules=["sq", "up"]), autocast_adapter_dtype=False
    ).double()
    layers = {n: m for n, m in theirs.base_model.model.named_modules() if hasattr(m, "lora_A")}
    for site, entry in adapted.entries().items():
        layers[site].lora_A["default"].weight.data.copy_(entry.get("A"))
    second = create_lorafa_optimizer(theirs, r=4, lora_alpha=6, lr=1e-3)
    for group in second.param_groups:
        group["eps"] = 0.0
    stepped(model, adapted.optimizer(lr=1e-3, eps=0.0), 5)
    stepped(theirs, second, 5)
    for site, entry in adapted.entries().items():
        assert torch.equal(layers[site].lora_A["default"].weight, entry.get("A"))
        torch.testing.assert_close(layers[site].lora_B["default"].weight, entry.get("B"), rtol=1e-5, atol=1e-9)
        assert float(entry.get("B").abs().max()) > 1e-3
