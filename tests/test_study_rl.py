"""Training of a stored subnetwork alone, and the tolerance that tells it: Sub(entries(mask), adam, drop)."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from deltaw.errors import ShapeError, TargetError
from deltaw.study.checks.rl_subnetwork import changed, kept_by, masked, tolerance, update_sparsity
from deltaw.testing.tiny import values


def net(dtype=torch.float32):
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).to(dtype)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(0.5 * values(*p.shape, name=name))
            p.view(-1)[::3] = -0.0  # the one value that x + 0 changes
    return model


def bits(t):
    return t.detach().contiguous().view(torch.int16 if t.dtype == torch.bfloat16 else torch.int32)


def train(model, optimizer, steps=5):
    x, y = (values(16, n, name=f"data{n}").to(next(model.parameters()).dtype) for n in (6, 4))
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()


def masks_of(model, share=0.3):
    return {k: values(*p.shape, name=f"mask.{k}") > 1.0 - share for k, p in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_complement_keeps_every_bit(dtype):
    model = net(dtype)
    masks, before = masks_of(model), copy.deepcopy(model.state_dict())
    train(model, masked(model, masks, lr=0.05))
    for k, p in model.named_parameters():
        same = bits(p) == bits(before[k])
        assert same[~masks[k]].all(), f"{k}: an entry outside the mask changed"
        assert not same[masks[k]].any(), f"{k}: an entry of the mask was never moved"


def test_masked_adam_is_adam_on_the_masked_entries():
    """Against a loop in float64 that knows nothing of frames: moments on the gradient's masked entries."""
    model = net(torch.float64)
    masks, twin = masks_of(model), copy.deepcopy(model)
    train(model, masked(model, masks, lr=0.05, betas=(0.8, 0.9), eps=1e-6), steps=4)
    x, y = values(16, 6, name="data6"), values(16, 4, name="data4")
    m, v = ({k: torch.zeros_like(p) for k, p in twin.named_parameters()} for _ in range(2))
    for t in range(1, 5):
        twin.zero_grad()
        (twin(x) - y).square().mean().backward()
        with torch.no_grad():
            for k, p in twin.named_parameters():
                m[k] = 0.8 * m[k] + 0.2 * p.grad
                v[k] = 0.9 * v[k] + 0.1 * p.grad**2
                step = (m[k] / (1 - 0.8**t)) / ((v[k] / (1 - 0.9**t)).sqrt() + 1e-6)
                p -= 0.05 * step * masks[k]
    for (k, p), q in zip(model.named_parameters(), twin.parameters()):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12, msg=k)


def test_state_is_of_the_masked_entries_only_and_resumes():
    model = net()
    masks = masks_of(model)
    optimizer = masked(model, masks, lr=0.05)
    train(model, optimizer, 3)
    named = dict(model.named_parameters())
    assert {k for k, p in named.items() if p in optimizer.state} == {k for k, mask in masks.items() if mask.any()}
    for k in (k for k, mask in masks.items() if mask.any()):
        s = optimizer.state[named[k]]
        assert s["inner"]["m"].numel() == s["inner"]["v"].numel() == s["frame"]["index"].numel() == int(masks[k].sum())
    twin = copy.deepcopy(model)
    second = masked(twin, masks, lr=0.05)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, 2)
    train(twin, second, 2)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters()))


def test_the_subnetwork_of_a_run_is_found_again():
    """Train a mask, ask which entries changed, train those from the start: the same model."""
    model = net()
    start, masks = copy.deepcopy(model), masks_of(model)
    before = copy.deepcopy(model.state_dict())
    train(model, masked(model, masks, lr=0.05))
    found = changed(before, model.state_dict())
    assert all(torch.equal(found[k], masks[k]) for k in masks)
    train(start, masked(start, found, lr=0.05))
    assert update_sparsity(model.state_dict(), start.state_dict(), tol=0.0) == 1.0


def test_a_mask_must_fit():
    model = net()
    with pytest.raises(TargetError, match=r"nearest: 0\.weight"):
        masked(model, {"0.weigth": torch.ones(8, 6, dtype=torch.bool)}, lr=1e-3)
    with pytest.raises(ShapeError, match=r"\(8, 6\) was expected; found \(6, 8\)"):
        masked(model, {"0.weight": torch.ones(6, 8, dtype=torch.bool)}, lr=1e-3)
    with pytest.raises(TargetError, match="nothing to train"):
        masked(model, {"0.weight": torch.zeros(8, 6, dtype=torch.bool)}, lr=1e-3)


def test_the_default_tolerance_goes_with_the_dtype():
    assert tolerance(torch.bfloat16) == tolerance(torch.float32) == 1e-5 and tolerance(torch.float64) < 1e-13
    old, new = {"w": torch.ones(10, dtype=torch.float64)}, {"w": torch.ones(10, dtype=torch.float64)}
    new["w"][:4] += 1e-9
    assert update_sparsity(old, new) == pytest.approx(0.6), "in float64 a step of 1e-9 is a change"
    assert update_sparsity(old, new, dtype=torch.float32) == 1.0, "as float32 it is none"
    # the coarser of the two decides: a float64 copy of float32 weights differs by rounding only
    w = {"w": values(50, name="w").float()}
    assert update_sparsity(w, {"w": w["w"].double() + 1e-9}) == 1.0


def test_a_sparse_update_loses_norm_by_rank_and_nothing_by_entries():
    """What reinforcement learning leaves, in small: few entries, spread, of nearly full rank."""
    mask = values(30, 20, name="sparse") > 1.2
    kept = kept_by(values(30, 20, name="step") * mask, r=3, share=float(mask.double().mean()))
    assert kept["sparse"] == pytest.approx(1.0) and kept["rank"] < 0.8
