"""LoRA-GGPO's noise: where it is and is not, how large it is, and that it can be had again."""

from __future__ import annotations

import copy

import pytest
import torch

import deltaw
from deltaw.errors import SpecError
from deltaw.methods import DoRA, LoRA, LoRAFA, LoRAGGPO, VeRA
from deltaw.methods.perturbed import Noise, gaussian
from deltaw.plan import Plan
from deltaw.testing.closed import closed
from deltaw.testing.tiny import Tiny, settle, values


def put(method=None, dtype=torch.float64):
    model = settle(Tiny(), dtype)
    method = method or LoRAGGPO(LoRA(r=3, alpha=6.0), sigma=0.3, beta=0.5)
    adapted = deltaw.attach(model, Plan(method, targets=["sq", "up"]))
    with torch.no_grad():
        for name, p in adapted.trainable().items():
            p.copy_(values(*p.shape, name=name, std=0.3))
    return model.train(), adapted


def stepped(model, opt, step, parts=1, dtype=torch.float64):
    opt.zero_grad()
    for x, y in zip(*(values(8, 16, name=f"{w}{step}", dtype=dtype).chunk(parts) for w in "xy")):
        ((model(x) - y).square().mean() / parts).backward()
    opt.step()


def test_gaussian():
    z = gaussian(200_001, 5, torch.device("cpu"))
    assert len(z) == 200_001 and abs(z.mean()) < 0.01 and abs(z.std() - 1) < 0.01 and abs(z.pow(4).mean() - 3) < 0.05
    assert abs((z[1:] * z[:-1]).mean()) < 0.01 and z.isfinite().all()
    assert torch.equal(gaussian(10, 5, z.device), gaussian(10, 5, z.device))
    assert not torch.equal(gaussian(10, 5, z.device), gaussian(10, 6, z.device))


def test_the_noise_is_one_matrix_in_pieces(monkeypatch):
    """Forward, transpose and gradient are those of its matrix, and rows have the standard deviation tau."""
    tau, key = values(400, name="tau").abs(), torch.tensor(7)
    monkeypatch.setattr("deltaw.methods.perturbed.LARGEST", 5000)
    noise = Noise(tau, 300, key)
    N, x, dy = noise.dense(), values(2, 5, 300, name="x").requires_grad_(), values(2, 5, 400, name="dy")
    torch.testing.assert_close(noise(x), x @ N.mT)
    noise(x).backward(dy)
    torch.testing.assert_close(x.grad, dy @ N)
    torch.testing.assert_close(noise.rmv(dy), dy @ N)
    assert ((N.std(1) / tau - 1).abs() < 0.25).all() and abs((N / tau[:, None]).std() - 1) < 0.01


def test_rows_are_as_noisy_as_the_formula_says():
    assert closed("rules", "lora_ggpo").check()


def test_training_adds_the_noise_and_evaluation_none():
    model, adapted = put()
    stepped(model, adapted.optimizer(1e-2), 0)
    p = {k.rpartition(".")[2]: t.detach() for k, t in adapted.state().items() if k.startswith("blocks.0.sq.")}
    site, x = model.blocks[0].sq, values(9, 16, name="x")
    V, N = site.weight + 2.0 * p["B"] @ p["A"], Noise(p["tau"], 16, p["key"]).dense()
    assert N.norm() > 0.01 * V.norm()
    torch.testing.assert_close(site(x), x @ (V + N).mT + site.bias)
    merged = adapted.merge().model().get_submodule("blocks.0.sq").weight  # exports have none, in training mode too
    torch.testing.assert_close(merged, V)
    assert adapted.to_lora().rank == 3
    model.eval()
    torch.testing.assert_close(site(x), x @ V.mT + site.bias)


def test_without_sigma_and_beta_it_is_lora():
    runs = []
    for method in (LoRA(r=3, alpha=6.0), LoRAGGPO(LoRA(r=3, alpha=6.0), sigma=0.0, beta=0.0)):
        model, adapted = put(method)
        opt = adapted.optimizer(1e-2)
        for step in range(3):
            stepped(model, opt, step)
        runs.append(adapted.trainable())
    for name in runs[0]:
        torch.testing.assert_close(runs[1][name], runs[0][name], rtol=1e-12, atol=1e-14)


def test_no_gradient_reaches_the_norms():
    """dL/dA and dL/dB are those of W + N + s B A with the N that was drawn as a constant."""
    model, adapted = put()
    opt = adapted.optimizer(1e-2)
    stepped(model, opt, 0)
    opt.zero_grad()
    site, x = model.blocks[0].sq, values(4, 16, name="x")
    p = {k.rpartition(".")[2]: t for k, t in adapted.state().items() if k.startswith("blocks.0.sq.")}
    y = site(x)
    y.sin().sum().backward()
    A, B = (p[k].detach().clone().requires_grad_() for k in "AB")
    W = site.weight + 2.0 * B @ A + Noise(p["tau"].detach(), 16, p["key"]).dense()
    (x @ W.mT + site.bias).sin().sum().backward()
    torch.testing.assert_close(p["A"].grad, A.grad)
    torch.testing.assert_close(p["B"].grad, B.grad)


def test_noise_is_of_the_step_and_resumes():
    """Micro-batches of a step share it, steps do not, sites do not; a run that is stopped and resumed has the same bits."""
    one, four = put(), put()
    for model, adapted, parts in ((*one, 1), (*four, 4)):
        opt = adapted.optimizer(1e-2)
        for step in range(4):
            stepped(model, opt, step, parts)
    for name, t in one[1].trainable().items():
        torch.testing.assert_close(four[1].trainable()[name], t, rtol=1e-8, atol=1e-10)
    keys = [int(t) for k, t in one[1].state().items() if k.endswith("key")]
    assert len(set(keys)) == len(keys) == 4
    model, adapted = put(dtype=torch.float32)
    opt = adapted.optimizer(1e-2)
    for step in range(2):
        stepped(model, opt, step, dtype=torch.float32)
    state, tensors = copy.deepcopy(opt.state_dict()), {k: t.detach().clone() for k, t in adapted.state().items()}
    for step in range(2, 5):
        stepped(model, opt, step, dtype=torch.float32)
    torch.manual_seed(99)  # the global generator has no say
    again, second = put(dtype=torch.float32)
    with torch.no_grad():
        for k, t in second.state().items():
            t.copy_(tensors[k])
    opt = second.optimizer(1e-2)
    opt.load_state_dict(state)
    for step in range(2, 5):
        stepped(again, opt, step, dtype=torch.float32)
    for name, t in adapted.state().items():
        assert torch.equal(second.state()[name], t), name


def test_what_has_no_factors_is_refused_and_what_has_is_not():
    with pytest.raises(SpecError, match="no such A and B"):
        put(LoRAGGPO(VeRA(r=3)))[1].optimizer(1e-2)
    for method in (LoRAGGPO(LoRAFA(r=3)), LoRAGGPO(DoRA(LoRA(r=3)))):
        model, adapted = put(method)
        opt = adapted.optimizer(1e-2)
        for step in range(2):
            stepped(model, opt, step)
        assert all(float(t.min()) > 0 for k, t in adapted.state().items() if k.endswith("tau"))
