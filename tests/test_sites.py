"""Every kind of site: the delta is where it should be, in value and in gradient, and the base is untouched."""

import pytest
import torch
from torch import nn

import deltaw
from deltaw.errors import NotLinear, NotMergeable, SpecError, TargetError
from deltaw.methods import DoRA, LoRA


def stir(adapted, seed=0, size=0.3):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in adapted.trainable().values():
            p.add_(size * torch.randn(p.shape, generator=g, dtype=p.dtype))


def snapshot(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(model, before):
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[k], before[k]) for k in before)


CONVS = [
    (nn.Conv1d(6, 8, 3, padding=1), (2, 6, 9)),
    (nn.Conv2d(6, 8, 3, stride=2, padding=1, dilation=1), (2, 6, 9, 9)),
    (nn.Conv2d(6, 8, (3, 1), padding="same", groups=2, bias=False), (2, 6, 7, 7)),
    (nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"), (2, 6, 7, 7)),
    (nn.Conv3d(4, 6, 3), (1, 4, 5, 5, 5)),
]


@pytest.mark.parametrize("method", [LoRA(r=3), DoRA(LoRA(r=3))], ids=["lora", "dora"])
@pytest.mark.parametrize("conv,shape", CONVS, ids=["1d", "2d", "groups", "reflect", "3d"])
def test_convolution_equals_a_convolution_with_the_merged_kernel(conv, shape, method):
    model = nn.Sequential(conv.double(), nn.ReLU())
    before = snapshot(model)
    x = torch.randn(shape, dtype=torch.float64)
    y0 = model(x)
    adapted = deltaw.attach(model, deltaw.Plan(method, targets=["0"]))
    assert torch.allclose(model(x), y0, atol=1e-12)
    stir(adapted)
    y = model(x)
    assert (y - y0).abs().max() > 1e-2
    merged = adapted.merge(x)
    assert merged.certificate.max_error < 1e-12
    assert torch.allclose(merged.model()(x), y, atol=1e-12)
    adapted.detach()
    assert same(model, before)


class Tied(nn.Module):
    def __init__(self, tie=True):
        super().__init__()
        self.emb, self.mid, self.head = nn.Embedding(11, 6), nn.Linear(6, 6), nn.Linear(6, 11, bias=False)
        if tie:
            self.head.weight = self.emb.weight

    def forward(self, ids):
        return self.head(torch.tanh(self.mid(self.emb(ids))))


@pytest.mark.parametrize("method", [LoRA(r=2), DoRA(LoRA(r=2))], ids=["lora", "dora"])
def test_both_ends_of_a_tied_weight_share_one_delta_and_stay_tied(method):
    torch.manual_seed(0)
    model = Tied().double()
    ids = torch.arange(8).reshape(2, 4)
    adapted = deltaw.attach(model, deltaw.Plan(method, targets=["emb", "head"]))
    stir(adapted)
    assert len({id(p) for p in adapted.trainable().values()}) == len(adapted.trainable())
    assert [a.shares for a in adapted.assignments] == [None, "emb"]
    y = model(ids)
    merged = adapted.merge(ids)
    assert merged.certificate.untied == [] and merged.certificate.max_error < 1e-12
    new = merged.model()
    assert new.head.weight is new.emb.weight
    assert torch.allclose(new(ids), y, atol=1e-12)


def test_one_end_of_a_tied_weight_is_untied_by_the_merge_and_says_so():
    model = Tied().double()
    ids = torch.arange(8).reshape(2, 4)
    adapted = deltaw.attach(model, deltaw.Plan(LoRA(r=2), targets=["head"]))
    stir(adapted)
    merged = adapted.merge(ids)
    assert merged.certificate.untied == ["head.weight"]
    new = merged.model()
    assert new.head.weight is not new.emb.weight
    assert torch.equal(new.emb.weight, model.emb.weight)
    assert torch.allclose(new(ids), model(ids), atol=1e-12)


def test_embedding_subclass_that_scales_its_rows():
    class Scaled(nn.Embedding):
        embed_scale = 3.0

        def forward(self, ids):
            return super().forward(ids) * self.embed_scale

    model = nn.Sequential(Scaled(9, 4)).double()
    ids = torch.arange(9)
    adapted = deltaw.attach(model, deltaw.Plan(LoRA(r=2), targets=["0"]))
    assert torch.equal(model(ids), 3 * model[0].weight)
    stir(adapted)
    assert adapted.merge(ids).certificate.max_error < 1e-12


def test_embedding_with_max_norm_is_refused():
    with pytest.raises(SpecError, match="max_norm"):
        deltaw.attach(nn.Sequential(nn.Embedding(5, 4, max_norm=1.0)), deltaw.Plan("lora", targets=["0"]))


class Experts(nn.Module):
    def __init__(self, transposed):
        super().__init__()
        self.is_transposed = transposed
        self.up = nn.Parameter(torch.randn(3, 5, 4, dtype=torch.float64))
        self.down = nn.Parameter(torch.randn(3, 4, 5, dtype=torch.float64))

    def forward(self, x, which):
        up, down = self.up[which], self.down[which]
        return (x @ up) @ down if self.is_transposed else torch.relu(x @ up.mT) @ down.mT


class MoE(nn.Module):
    def __init__(self, transposed):
        super().__init__()
        self.gate, self.experts = nn.Linear(4 + transposed, 2, dtype=torch.float64), Experts(transposed)

    def forward(self, x):
        return sum(self.experts(x, e) for e in range(3))


@pytest.mark.parametrize("transposed", [False, True])
def test_expert_stacks(transposed):
    torch.manual_seed(0)
    model = MoE(transposed)
    before = snapshot(model)
    x = torch.randn(7, 4 + transposed, dtype=torch.float64)
    y0 = model(x)
    adapted = deltaw.attach(model, deltaw.Plan(LoRA(r=2), targets=["experts.up", "experts.down"]))
    assert len(adapted.assignments) == 6 and torch.equal(model(x), y0)
    stir(adapted)
    y = model(x)
    y.sum().backward()
    assert all(p.grad is not None for p in adapted.trainable().values())
    assert model.experts.up.grad is None
    merged = adapted.merge(x)
    assert merged.certificate.max_error < 1e-12 and merged.certificate.tensors == 2
    assert torch.allclose(merged.model()(x), y)
    with deltaw.rows(model, ["default"] * 7), pytest.raises(NotLinear, match="expert"):
        model(x)
    adapted.detach()
    assert same(model, before)


def test_attention_weights_that_are_never_called_are_refused_and_left_out():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    with pytest.raises(TargetError, match="reads its weight directly"):
        deltaw.attach(model, deltaw.Plan(LoRA(r=2), targets=["out_proj"]))
    assert all("out_proj" not in a.site.name for a in deltaw.Plan(LoRA(r=2)).resolve(model))


def test_the_fused_encoder_kernel_does_not_skip_the_delta():
    """nn.TransformerEncoderLayer has a kernel that reads linear1.weight directly, in eval mode without gradients."""
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), 2).eval()
    x = torch.randn(2, 5, 8)
    y0 = model(x)
    adapted = deltaw.attach(model, deltaw.Plan(LoRA(r=2)))
    stir(adapted)
    with torch.no_grad():
        y = model(x)
    assert (y - y0).abs().max() > 1e-2
    assert torch.allclose(adapted.merge(x).model()(x), y, atol=1e-5)
    adapted.detach()
    assert not model.layers[0].linear1._forward_pre_hooks and torch.equal(model(x), y0)


class Foreign(nn.Linear):
    """A linear layer with a kernel of its own (here: it rounds its activations)."""

    calls = 0

    def forward(self, x):
        type(self).calls += 1
        return nn.functional.linear((x * 64).round() / 64, self.weight, self.bias)


@pytest.mark.parametrize("method", [LoRA(r=2), DoRA(LoRA(r=2))], ids=["lora", "dora"])
def test_a_foreign_linear_is_called_by_its_own_kernel(method):
    torch.manual_seed(0)
    model = nn.Sequential(Foreign(6, 5)).double()
    x = torch.randn(3, 6, dtype=torch.float64)
    y0 = model(x)
    adapted = deltaw.attach(model, deltaw.Plan(method))
    Foreign.calls = 0
    assert torch.allclose(model(x), y0, atol=1e-12) and Foreign.calls == 1
    assert adapted.assignments[0].site.kind == "opaque"
    with pytest.raises(NotMergeable, match="quantise again"):
        adapted.merge()


def bnb_layer(kind):
    bnb = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    plain = nn.Linear(64, 48)
    if kind == "8bit":
        layer = bnb.nn.Linear8bitLt(64, 48, has_fp16_weights=False)
    else:
        layer = bnb.nn.Linear4bit(64, 48, compute_dtype=torch.float32, quant_type=kind)
    layer.load_state_dict(plain.state_dict(), strict=False)
    return nn.Sequential(layer.to("cpu")), plain


@pytest.mark.parametrize("kind", ["8bit", "nf4", "fp4"])
def test_bitsandbytes_on_the_cpu(kind):
    model, plain = bnb_layer(kind)
    x = torch.randn(5, 64)
    y0 = model(x).float()
    adapted = deltaw.attach(model, deltaw.Plan(LoRA(r=4)))
    leaf = adapted.assignments[0].site.leaf().op
    assert leaf.shape == (48, 64)
    scale = plain.weight.abs().max()
    assert (leaf.dense().float() - plain.weight).abs().max() < 0.2 * scale  # it decodes to about the original
    assert torch.allclose(model(x).float(), y0)
    stir(adapted)
    before = {k: v.clone() for k, v in model.state_dict().items() if isinstance(v, torch.Tensor)}
    loss = model(x).float().square().sum()
    loss.backward()
    grads = [p.grad for p in adapted.trainable().values()]
    assert all(g is not None and g.abs().sum() > 0 for g in grads)
    e = adapted.entries()["0"]
    want = y0 + 2.0 * (x @ e.A.T @ e.B.T)
    assert torch.allclose(model(x).float(), want, atol=2e-2 * float(want.abs().max()))
    now = model.state_dict()
    assert all(torch.equal(now[k], v) for k, v in before.items())
    with pytest.raises(NotMergeable):
        adapted.merge(x)
    with deltaw.disabled(model):
        assert torch.equal(model(x).float(), y0)


def test_another_librarys_instance_forward_is_kept():
    model = nn.Sequential(nn.Linear(4, 3))
    plain = model[0].forward
    model[0].forward = lambda x: plain(x) + 1.0
    x = torch.randn(2, 4)
    y0, was = model(x), model[0].__dict__["forward"]
    adapted = deltaw.attach(model, deltaw.Plan(LoRA(r=2)))
    assert torch.equal(model(x), y0)
    adapted.detach()
    assert model[0].__dict__["forward"] is was and torch.equal(model(x), y0)


def test_the_root_itself_can_be_the_site():
    model = nn.Linear(4, 3)
    with pytest.raises(TargetError):
        deltaw.attach(model, deltaw.Plan(LoRA(r=2), targets=["nothing"]))


def test_trained_modules_and_token_rows_leave_the_base_alone():
    torch.manual_seed(0)
    model = Tied(tie=False).double()
    ids = torch.arange(8).reshape(2, 4)
    before, y0 = snapshot(model), model(ids)
    plan = deltaw.Plan(LoRA(r=2), targets=["mid"], train_modules=["head"], token_rows={"emb": [3, 1]})
    adapted = deltaw.attach(model, plan)
    assert torch.allclose(model(ids), y0, atol=1e-12)
    stir(adapted)
    y = model(ids)
    y.square().sum().backward()
    assert set(adapted.trainable()) == {"mid.A", "mid.B", "head.weight", "emb.v"}
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapted.trainable().values())
    merged = adapted.merge(ids)
    assert merged.certificate.max_error < 1e-12
    new = merged.model()
    moved = (new.emb.weight != model.emb.weight).any(1).nonzero().flatten().tolist()
    assert moved == [1, 3]
    with deltaw.rows(model, ["default", None]):
        mixed = model(ids)
    assert torch.allclose(mixed[0], y[0]) and torch.allclose(mixed[1], y0[1])
    adapted.detach()
    assert same(model, before) and torch.equal(model(ids), y0)
