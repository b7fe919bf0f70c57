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


# ---- lives of adapters: names, handles, contexts, overlapping models


def linears(*sizes: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:])))


@pytest.mark.parametrize("name", ["keys", "train", "type", "values", "training", "forward"])
def test_an_adapter_named_like_a_word_of_torch(name):
    model = linears(4, 4)
    with pytest.raises(SpecError, match="another adapter name"):
        attach(model, "lora", name)
    assert not list(deltaw.adapters(model)) and model[0].weight.requires_grad  # it was left half attached


def test_a_part_and_the_whole():
    """The first adapter was silently passed over by the second."""
    model = nn.Sequential(linears(4, 4), nn.Linear(4, 4))
    attach(model[0], "lora", "part")
    with pytest.raises(SpecError, match="through another model"):
        attach(model, "lora", "whole")
    other = nn.Sequential(model[0], nn.Linear(4, 2))
    with pytest.raises(SpecError, match="through another model"):
        attach(other, "lora")


def test_a_handle_after_detach():
    """It read and saved the tensors of the next adapter of its name."""
    model = linears(4, 4)
    old = attach(model, "lora")
    old.detach()
    attach(model, methods.LoRA(r=2))
    for use in (old.state, old.trainable, old.merge, old.to_lora, old.report, old.pool, old.detach):
        with pytest.raises(SpecError, match="detached"):
            use()
    assert "detached" in repr(old)


def test_contexts_apply_when_entered_and_each_time():
    model, x = linears(4, 4), torch.randn(2, 4)
    base = model(x)
    shake(attach(model, "lora", "a"))
    on = model(x)
    off = deltaw.disabled(model)
    assert torch.equal(model(x), on)  # a forgotten `with` once switched everything off for good
    for _ in range(2):
        with off:
            assert torch.equal(model(x), base)
            with off:
                assert torch.equal(model(x), base)
            assert torch.equal(model(x), base)
        assert torch.equal(model(x), on)


@pytest.mark.parametrize("context", [deltaw.disabled, lambda m: deltaw.rows(m, ["a", "b"]), lambda m: deltaw.activate(m, "a")])
def test_a_forward_that_raises_inside_a_context(context):
    model, x = linears(4, 4), torch.randn(2, 4)
    shake(attach(model, "lora", "a"))
    shake(attach(model, "lora", "b"))
    want = model(x)
    with pytest.raises(RuntimeError), context(model):
        model(torch.randn(2, 5))
    assert torch.equal(model(x), want)


def test_detaching_inside_contexts():
    model = linears(4, 4)
    a, b = attach(model, "lora", "a"), attach(model, "lora", "b")
    deltaw.activate(model, "a")
    with deltaw.rows(model, ["a", "b"]), pytest.raises(SpecError, match="rows"):
        a.detach()  # its row would have run the base
    with deltaw.activate(model, "b"):
        a.detach()
    assert model(torch.randn(2, 4)).shape == (2, 4) and not b.report()["live"]


def test_children_of_a_sequential():
    """nn.Sequential calls its children one after the other, what was attached included."""
    model, x = nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.Tanh(), nn.Linear(6, 3))), torch.randn(2, 4)
    base = model(x)
    for plan in (Plan("vera", targets="0"), Plan(methods.LoRA(r=2), targets="0", train_modules=["1"])):
        adapted = attach(model, plan)
        torch.testing.assert_close(model(x), base)
        shake(adapted)
        want = model(x)
        assert not torch.allclose(want, base)
        torch.testing.assert_close(adapted.merge(x).model()(x), want)
        adapted.detach()
    assert torch.equal(model(x), base)


def test_a_module_list_is_never_called():
    """Its trained copy would have been used nowhere."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.out = nn.ModuleList([nn.Linear(4, 4)]), nn.Linear(4, 2)

    with pytest.raises(TargetError, match="never called"):
        attach(Net(), Plan("lora", targets=["out"], train_modules=["layers"]))


def test_another_library_wraps_the_forward_while_attached():
    model, x = linears(4, 4), torch.randn(2, 4)
    base = model(x)
    adapted = shake(attach(model, "lora"))
    inner = model[0].forward
    model[0].forward = lambda *a, **k: inner(*a, **k) + 1
    adapted.detach()
    assert torch.equal(model(x), base + 1)  # the wrapper stays
    shake(attach(model, "lora"))
    assert not torch.allclose(model(x), base + 1)


def test_two_hundred_rounds_leave_nothing():
    model, x = linears(4, 4, 4), torch.randn(2, 4)
    keys, flags = list(model.state_dict()), [p.requires_grad for p in model.parameters()]
    for k in range(200):
        first = attach(model, methods.LoRA(r=1), "a")
        second = attach(model, methods.VeRA(r=2), "b")
        model(x).sum().backward()
        for adapted in (first, second) if k % 2 else (second, first):
            adapted.detach()
    assert list(model.state_dict()) == keys and [p.requires_grad for p in model.parameters()] == flags
    assert "forward" not in model[0].__dict__ and "_deltaw" not in model.__dict__ and not model._forward_pre_hooks


# ---- what a base layer may be


@pytest.mark.parametrize(
    "wrap",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.orthogonal,
        lambda layer: nn.utils.parametrizations.spectral_norm(layer),
        pytest.param(nn.utils.weight_norm, marks=pytest.mark.filterwarnings("ignore")),
    ],
)
@pytest.mark.parametrize("key", ["lora", "dora", "ia3"])
def test_a_parametrised_layer_is_opaque(wrap, key):
    """Reading a spectral norm in training mode moves its buffers: attaching did so; merging ended in a KeyError."""
    model, x = nn.Sequential(wrap(nn.Linear(8, 6))), torch.randn(3, 8)
    before = copy.deepcopy(model.state_dict())
    adapted = attach(model, Plan(methods.LoRA(r=2) if key == "lora" else key))
    if key != "dora":  # its start needs the norms of W
        assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    model.eval()
    with deltaw.disabled(model):
        base = model(x)
    torch.testing.assert_close(model(x), base)
    shake(adapted)
    assert not torch.allclose(model(x), base)
    with pytest.raises(NotMergeable):
        adapted.merge(x)
    adapted.detach()
    assert torch.equal(model(x), base)


def test_a_linear_layer_that_gives_no_tensor():
    """Llama 4's router is an nn.Linear that returns a pair."""

    class Router(nn.Linear):
        def forward(self, x):
            return super().forward(x).topk(1)

    model = nn.Sequential(Router(4, 4))
    attach(model, "lora")
    with pytest.raises(DeltawError, match="exclude"):
        model(torch.randn(2, 4))


def test_the_padding_row_gets_no_gradient():
    model = nn.Sequential(nn.Embedding(10, 8, padding_idx=0, sparse=True))
    adapted = shake(attach(model, Plan(methods.LoRA(r=2), targets=["0"])))
    model(torch.tensor([[0, 0, 3]])).sum().backward()
    grad = adapted.state()["0.A"].grad
    assert grad[:, 0].abs().max() == 0 and grad[:, 3].abs().max() > 0


# ---- numbers at the edge


def test_dora_over_rows_of_zeros():
    """A pruned row gave 0/0."""
    model, x = linears(8, 6), torch.randn(3, 8)
    model[0].weight.data[2] = 0
    want = model(x)
    adapted = attach(model, "dora")
    torch.testing.assert_close(model(x), want)
    shake(adapted)
    model(x).sum().backward()
    assert all(p.grad.isfinite().all() for p in adapted.trainable().values())


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("out", [6, 1])
def test_inits_from_more_directions_than_there_are(init, out):
    """With one output the factors were broadcast."""
    with pytest.raises(ShapeError, match="directions"):
        attach(linears(8, out), Plan(methods.LoRA(r=7), init=init))


@pytest.mark.parametrize("alpha", [0.0, -2.0, float("nan")])
def test_inits_that_divide_by_the_scale(alpha):
    with pytest.raises(SpecError, match="scale"):
        attach(linears(8, 6), Plan(methods.LoRA(r=2, alpha=alpha), init="pissa"))


@pytest.mark.parametrize("r", [0, -1, 2.0])
def test_impossible_ranks(r):
    with pytest.raises(SpecError):
        attach(linears(8, 6), methods.LoRA(r=r))


def test_a_rank_above_the_sizes():
    """Gates with one output under a common rank: still plain factors."""
    model, x = linears(8, 6, 1), torch.randn(3, 8)
    adapted = shake(attach(model, methods.LoRA(r=9)))
    torch.testing.assert_close(adapted.merge(x).model()(x), model(x))
    B, A = adapted.to_lora().factors["1"]
    assert B.shape == (1, 9) and A.shape == (9, 6)
    assert adapted.to_lora(1).error["1"] < 1e-6


def test_the_start_under_autocast_is_the_base():
    """The bias was added after rounding, not inside the kernel."""
    model, x = linears(16, 32, 8), torch.randn(4, 16)
    with torch.autocast("cpu", torch.bfloat16):
        want = model(x)
        attach(model, "lora")
        assert torch.equal(model(x), want)


# ---- rows


def test_rows_follow_the_weights():
    """What is stacked for a generation must not outlive a step of training inside the same block."""
    model, x = linears(16, 16), torch.randn(2, 16)
    adapted = shake(attach(model, methods.LoRA(r=2), "a"))
    with deltaw.rows(model, ["a", "a"]):
        with torch.no_grad():
            model(x)
        assert model(x).requires_grad
        with torch.no_grad():
            shake(adapted)
            got = model(x)
        with torch.inference_mode():
            model(x)
        model(x).sum().backward()
    torch.testing.assert_close(got, model(x).detach())
    assert adapted.state()["0.A"].grad is not None


# ---- gradient checkpointing


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputing_under_other_adapters_is_refused(reentrant):
    """The forward ran under one adapter, the recomputation in backward under another: gradients of something else."""
    from torch.utils.checkpoint import checkpoint

    model, x = linears(8, 8, 8), torch.randn(4, 8, requires_grad=True)
    a = shake(attach(model, methods.LoRA(r=2), "a"))
    shake(attach(model, methods.LoRA(r=2), "b"))
    with deltaw.activate(model, "a"):
        model(x).sum().backward()
        want = a.state()["0.A"].grad.clone()
        y = checkpoint(model, x, use_reentrant=reentrant)
        with torch.no_grad(), deltaw.disabled(model):  # a reference pass in between is fine
            model(x)
    with pytest.raises(SpecError, match="checkpointing"):
        y.sum().backward()
    a.state()["0.A"].grad = None
    with deltaw.activate(model, "a"):
        checkpoint(model, x, use_reentrant=reentrant).sum().backward()
    torch.testing.assert_close(a.state()["0.A"].grad, want)


def test_one_module_in_two_roles():
    """The second role took over the module: a LoRA on a square layer was then applied to that layer's output."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    shake(attach(model, Plan(methods.LoRA(r=2), targets=["0"]), "a"))
    x = torch.randn(3, 8)
    want = model(x)
    with pytest.raises(SpecError, match="as a stream"):
        attach(model, Plan(methods.ReFT(r=2), targets=["0"]), "b")
    with pytest.raises(SpecError, match="as a module"):
        attach(model, Plan(methods.LoRA(r=2), targets=["1"], train_modules=["0"]), "b")
    assert torch.equal(model(x), want)


def test_trained_modules_inside_trained_modules():
    """Both would hold a copy of the same weight, of which one never learns."""
    model = nn.ModuleDict({"a": nn.Linear(8, 8), "h": nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))})
    adapted = attach(model, Plan("lora", targets=["a"], train_modules=["h", "1"]))
    assert [a.site.name for a in adapted.assignments] == ["a", "h"]


class Routed(nn.Module):
    """Experts as linear layers that are called with the tokens picked for them."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(16, 2), nn.ModuleList(nn.Linear(16, 16) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        chosen, out = self.gate(flat).argmax(-1), torch.zeros_like(flat)
        for k, expert in enumerate(self.experts):
            at = (chosen == k).nonzero().squeeze(-1)
            out[at] = expert(flat[at])
        return out.view_as(x)


@torch.no_grad()
def test_rows_of_picked_tokens_are_refused():
    """An even number of picked tokens was taken for half a batch each."""
    model = Routed()
    shake(attach(model, Plan(methods.LoRA(r=2), targets=["experts.0", "experts.1"]), "a"))
    for _ in range(10):
        with pytest.raises(ShapeError, match="picked"), deltaw.rows(model, ["a", None]):
            model(torch.randn(2, 6, 16))
    gate = shake(attach(model, Plan(methods.LoRA(r=1), targets=["gate"]), "g"))  # sees all tokens, row by row
    deltaw.activate(model, [])
    with deltaw.rows(model, ["g", None]):
        model(torch.randn(2, 6, 16))
    assert gate.report()["sites"] == 1


@torch.no_grad()
def test_merging_one_adapter_while_rows_use_another():
    model, x = linears(8, 8, 4), torch.randn(3, 8)
    a = shake(attach(model, methods.LoRA(r=2), "a"))
    want = model(x)
    shake(attach(model, "dora", "b"))
    with deltaw.rows(model, ["b", None, "b"]):
        torch.testing.assert_close(a.merge(x).model()(x), want)
