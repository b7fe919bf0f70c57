"""Attacks that once went through: each is now right, or refused with a named error."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import deltaw
from deltaw import Plan, attach, methods
from deltaw.errors import DeltawError, NotMergeable, ShapeError, SpecError, TargetError


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def shake(adapted, size: float = 0.3):
    """Move every trained tensor away from its start."""
    with torch.no_grad():
        for p in adapted.trainable().values():
            p.add_(torch.randn_like(p) * size)
    return adapted


class TiedLM(nn.Module):
    def __init__(self, tokens: int = 20, width: int = 8):
        super().__init__()
        self.embed, self.mid = nn.Embedding(tokens, width), nn.Linear(width, width)
        self.head = nn.Linear(width, tokens, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mid(self.embed(ids))))


IDS = torch.arange(10).reshape(2, 5)

# ---- tied weights and shared instances


@pytest.mark.parametrize(
    "plan",
    [
        {"targets": ["embed"]},
        {"targets": ["head"]},
        {"targets": ["embed", "head"]},
        {"targets": ["embed", "head"], "tie": False},
        {"targets": ["embed", "head"], "overrides": {"head": {"r": 4}}},
        {"targets": ["head"], "train_modules": ["embed"]},
        {"targets": ["mid"], "train_modules": ["head"]},
        {"targets": ["mid"], "train_modules": ["embed", "head"]},
        {"targets": ["mid"], "token_rows": {"embed": [1, 3]}},
    ],
)
def test_merging_over_a_tied_weight(plan):
    """Both ends changed differently were merged into one tensor; the certificate said that all was well."""
    model = TiedLM()
    adapted = shake(attach(model, Plan(methods.LoRA(r=2), **plan)))
    want = model(IDS)
    merged = adapted.merge(IDS)
    assert merged.certificate.max_error < 1e-5
    torch.testing.assert_close(merged.model()(IDS), want)
    new = merged.model()
    assert (new.embed.weight is new.head.weight) == (not merged.certificate.untied)


def test_token_rows_of_a_square_tied_head():
    """With as many tokens as features the shapes do not tell that one end is the transpose of the other."""
    model = TiedLM(8, 8)
    adapted = shake(attach(model, Plan(methods.LoRA(r=2), targets=["mid"], token_rows={"embed": [3, 5]})))
    W = model.head.weight.detach().clone()
    W[[3, 5]] = adapted.state()["embed.v"].detach()
    x = torch.randn(3, 8)
    torch.testing.assert_close(model.head(x), x @ W.T)


def test_conv1d_tied_to_an_embedding():
    """Both store (n, m): the second end is no transpose of the first."""
    Conv1D = pytest.importorskip("transformers.pytorch_utils").Conv1D
    model = nn.ModuleDict({"e": nn.Embedding(8, 8), "c": Conv1D(8, 8)})
    model["c"].weight = model["e"].weight
    shake(attach(model, Plan(methods.LoRA(r=2), targets=["e", "c"])))
    table, W = model["e"](torch.arange(8)), model["c"](torch.eye(8)) - model["c"].bias
    torch.testing.assert_close(table, W)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = self.a

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


def test_one_module_at_two_places(tmp_path):
    model, x = Twice(), torch.randn(2, 4)
    before = copy.deepcopy(model.state_dict())
    adapted = shake(attach(model, "lora"))
    want = model(x)
    merged = adapted.merge(x)
    torch.testing.assert_close(model(x), want)  # probing the merged weights once left them in the base
    torch.testing.assert_close(merged.model()(x), want)
    assert not merged.certificate.untied
    from safetensors.torch import load_file

    merged.save(tmp_path)
    other = Twice()
    other.load_state_dict({k: v for p in tmp_path.glob("*.safetensors") for k, v in load_file(p).items()})
    torch.testing.assert_close(other(x), want)  # the second name once held the base's weight
    adapted.detach()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
