"""Rank allocation: the pure parts, the edits with what they do to the optimiser, and schedules against their sources."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import deltaw
from deltaw.errors import SpecError
from deltaw.methods import AdaLoRA
from deltaw.testing.tiny import values

F64 = torch.float64


class Net(nn.Module):
    """Three linear layers."""

    def __init__(self, width: int = 12, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(width, 16), nn.Linear(16, 10), nn.Linear(10, 8)]).to(dtype)
        with torch.no_grad():
            for k, layer in enumerate(self.blocks):
                layer.weight.copy_(values(*layer.weight.shape, name=f"w{k}", std=0.3))
                layer.bias.zero_()

    def forward(self, x):
        for layer in self.blocks[:-1]:
            x = torch.tanh(layer(x))
        return self.blocks[-1](x)


def batch(step: int, dtype: torch.dtype = torch.float32, rows: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    return values(rows, 12, name=f"x{step}", dtype=dtype), values(rows, 8, name=f"y{step}", dtype=dtype)


def loss_of(model, step, dtype=torch.float32):
    x, y = batch(step, dtype)
    return (model(x) - y).square().mean()


def test_adalora_allocates_as_peft_does_over_60_steps():
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)  # PEFT draws its start from here; not every start ends in unequal ranks
    total, settings = 60, {"target_r": 3, "tinit": 5, "tfinal": 10, "deltaT": 3, "orth_reg_weight": 0.3}
    net = Net()
    config = peft.AdaLoraConfig(
        init_r=6, lora_alpha=8, total_step=total, target_modules=["blocks.0", "blocks.1", "blocks.2"], **settings
    )
    theirs = peft.get_peft_model(copy.deepcopy(net), config)
    ours = deltaw.attach(net, AdaLoRA(r=6, alpha=8.0, **settings))
    state = {k.replace("base_model.model.", ""): p for k, p in theirs.named_parameters() if "lora_" in k}
    with torch.no_grad():
        for site, entry in ours.entries().items():
            for name, word in (("P", "lora_B"), ("E", "lora_E"), ("Q", "lora_A")):
                entry.get(name).copy_(state[f"{site}.{word}.default"].view(entry.get(name).shape))
    a = ours.optimizer(lr=5e-3, steps=total)
    b = torch.optim.AdamW([p for k, p in theirs.named_parameters() if "lora_" in k], lr=5e-3, weight_decay=0.0)
    for step in range(total):
        a.zero_grad()
        loss_of(net, step).backward()
        a.step()
        b.zero_grad()
        loss = loss_of(theirs.base_model.model, step)
        found = []
        for k, p in theirs.named_parameters():
            if "lora_A" in k or "lora_B" in k:
                gram = p @ p.T if "lora_A" in k else p.T @ p
                found.append(torch.norm(gram - torch.eye(*gram.shape), p="fro"))
        (loss + settings["orth_reg_weight"] * sum(found) / len(found)).backward()
        b.step()
        theirs.base_model.update_and_allocate(step)
        for site, entry in ours.entries().items():
            E = state[f"{site}.lora_E.default"].flatten()
            assert torch.equal(entry.get("E") == 0, E == 0), (step, site)
            torch.testing.assert_close(entry.get("E"), E, rtol=0, atol=1e-6)
    pattern = {
        k.replace("base_model.model.", "").removesuffix(".lora_E.default"): v
        for k, v in theirs.peft_config["default"].rank_pattern.items()
    }
    assert {k: sum(v) for k, v in pattern.items()} == ours.ranks() and sum(ours.ranks().values()) == 9
    assert len(set(ours.ranks().values())) > 1
    assert any(e["what"].startswith("adalora") for e in ours.events)


# ---- what every rule that allocates has to keep

SCHEDULES = {
    "adalora": {"r": 6, "alpha": 8.0, "target_r": 3, "tinit": 3, "tfinal": 6, "deltaT": 2},
    "dora_dynamic": {"r": 6, "target_r": 3, "every": 3},
    "elalora": {"r": 4, "every": 5, "b0": 3},
    "increlora": {"target_r": 4, "h": 2, "every": 4, "warmup": 3},
}
STEPS = 30


def attached(key, dtype=F64, **kw):
    net = Net(dtype=dtype)
    return net, deltaw.attach(net, {"key": key, **SCHEDULES[key], **kw})


def steps(net, adapted, optimizer, first, last, micro=1, dtype=F64):
    for step in range(first, last):
        optimizer.zero_grad()
        x, y = batch(step, dtype)
        for a, b in zip(x.chunk(micro), y.chunk(micro)):
            ((net(a) - b).square().mean() / micro).backward()
        optimizer.step()


@pytest.mark.parametrize("key", SCHEDULES)
def test_a_resumed_run_allocates_as_an_uninterrupted_one(key, tmp_path):
    net, whole = attached(key)
    optimizer = whole.optimizer(1e-2, steps=STEPS)
    steps(net, whole, optimizer, 0, 14)
    whole.save(tmp_path / "a")
    kept = copy.deepcopy(optimizer.state_dict())
    steps(net, whole, optimizer, 14, STEPS)
    again = Net(dtype=F64)
    loaded = deltaw.load(again, tmp_path / "a")
    other = loaded.optimizer(1e-2, steps=STEPS)
    other.load_state_dict(kept)
    steps(again, loaded, other, 14, STEPS)
    assert loaded.ranks() == whole.ranks()
    assert all(torch.equal(t, loaded.state()[k]) for k, t in whole.state().items())


@pytest.mark.parametrize("key", SCHEDULES)
def test_accumulation_changes_nothing(key):
    found = []
    for micro in (1, 4):
        net, adapted = attached(key)
        steps(net, adapted, adapted.optimizer(1e-2, steps=STEPS), 0, STEPS, micro)
        found.append((adapted.ranks(), adapted.state()))
    assert found[0][0] == found[1][0]
    for k, t in found[0][1].items():
        torch.testing.assert_close(found[1][1][k], t, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("key", SCHEDULES)
def test_it_ends_at_its_budget_and_says_what_it_did(key):
    net, adapted = attached(key)
    optimizer = adapted.optimizer(1e-2, steps=STEPS)
    steps(net, adapted, optimizer, 0, STEPS)
    budget = {"adalora": 9, "dora_dynamic": 9, "elalora": 12, "increlora": 12}[key]
    total = sum(adapted.ranks().values())
    assert total == budget if key == "elalora" else 0 < total <= budget
    assert [e for e in adapted.events if e["what"].startswith(f"{key}: ")]


@pytest.mark.parametrize("key", ["adalora", "dora_dynamic", "elalora"])
def test_without_the_runs_length_they_say_so(key):
    _, adapted = attached(key)
    with pytest.raises(SpecError, match="steps=N"):
        adapted.optimizer(1e-2)


def test_holding_dead_terms_at_zero_equals_compacting_them():
    """The same change of the weights, step by step: with the gates of some terms held at 0, and without those terms."""
    from deltaw.methods import slots
    from deltaw.methods.rules import Rule, rule

    @rule(paper="(this test)")
    class Half(Rule):
        """From step `at` on every second term is dead: its gate is 0, or (cut) it is gone, with its moments."""

        at: int = 5
        cut: bool = False

        def after(self, view):
            keep = torch.arange(slots.count(view)) % 2 == 0
            if self.cut and view.step == self.at:
                slots.select(view, keep)
            elif not self.cut and view.step >= self.at:
                slots.silence(view, ~keep)

    try:
        found = []
        for cut in (False, True):
            net = Net(dtype=F64)
            plan = deltaw.Plan({"key": "sora", "r": 6, "lam": 0.0, "lambda2": 0.0}, update="slot_adamw", rules=Half(cut=cut))
            adapted = deltaw.attach(net, plan)
            optimizer, curve = adapted.optimizer(1e-2, steps=20), []
            for step in range(20):
                steps(net, adapted, optimizer, step, step + 1)
                curve.append({k: t for k, t in change_of(adapted).items()})
            found.append((adapted.ranks(), curve))
        assert set(found[0][0].values()) == {3} == set(found[1][0].values())
        assert [t.shape for t in adapted.state().values() if t.dim() == 1] == [(3,)] * 3, "the second run has no dead terms"
        for a, b in zip(found[0][1], found[1][1], strict=True):
            for site in a:
                torch.testing.assert_close(a[site], b[site], rtol=0, atol=1e-12)
    finally:
        deltaw.spec.RULES.table.pop(Half.key)


def test_masks_need_one_graph_and_ranks_one_each():
    from torch._dynamo.testing import CompileCounter

    def graphs(plan, count):
        torch._dynamo.reset()
        counter, net = CompileCounter(), Net()
        adapted = deltaw.attach(net, plan)
        optimizer = adapted.optimizer(1e-2, steps=count)
        fast = torch.compile(net, backend=counter, fullgraph=True, dynamic=False)
        seen = set()
        for step in range(count):
            optimizer.zero_grad()
            loss_of(fast, step).backward()
            seen.add(tuple(adapted.ranks().values()))
            optimizer.step()
        return counter.frame_count, len(seen)

    settings = {"r": 6, "target_r": 3, "tinit": 2, "tfinal": 4, "deltaT": 2}
    made, seen = graphs(deltaw.Plan({"key": "adalora", **settings}), 16)
    assert made == 1 and seen > 2, "a mask changed, and the graph stayed"
    ladder = {"key": "lora_squeeze", "ladder": [6, 4, 2]}
    made, seen = graphs(deltaw.Plan(deltaw.methods.LoRA(r=6, alpha=12.0), rules=ladder), 15)
    assert made <= seen == 3, "at most one graph for every rank"


# ---- squeezing and growing


def random_lora(r=6, dtype=F64, **kw):
    net = Net(dtype=dtype)
    adapted = deltaw.attach(net, deltaw.methods.LoRA(r=r, alpha=2.0 * r), **kw)
    with torch.no_grad():
        for k, t in adapted.trainable().items():
            t.copy_(values(*t.shape, name=k, std=0.5, dtype=dtype))
    return net, adapted


def change_of(adapted):
    return {s: B @ A for s, (B, A) in adapted.to_lora().factors.items()}


def test_squeeze_is_the_best_approximation_and_says_what_it_lost():
    net, adapted = random_lora()
    before = change_of(adapted)
    found = deltaw.squeeze(adapted, rank=2)
    lost = 0.0
    for site, (B, A) in found.factors.items():
        U, S, V = torch.linalg.svd(before[site])
        torch.testing.assert_close(B @ A, (U[:, :2] * S[:2]) @ V[:2], rtol=0, atol=1e-10)
        lost += float(S[2:].square().sum())
    whole = sum(float(d.square().sum()) for d in before.values())
    assert found.error == pytest.approx((lost / whole) ** 0.5, rel=1e-9)
    new = found.attach()
    assert set(new.ranks().values()) == {2}
    for site, d in change_of(new).items():
        torch.testing.assert_close(d, found.factors[site][0] @ found.factors[site][1], rtol=0, atol=1e-10)


def test_the_same_rank_is_the_identity_and_a_larger_one_keeps_the_function():
    for rank in (6, 8):
        net, adapted = random_lora()
        x = batch(0, F64)[0]
        y = net(x)
        found = deltaw.squeeze(adapted, rank=rank)
        new = found.attach()
        assert found.error < 1e-7 and set(new.ranks().values()) == {rank}
        torch.testing.assert_close(net(x), y, rtol=0, atol=1e-10)
        if rank == 8:
            loss_of(net, 0, F64).backward()
            assert all(bool((e.get("B").grad[:, 6:] != 0).any()) for e in new.entries().values())


def test_error_and_budget_are_met_with_the_fewest_numbers():
    _, adapted = random_lora()
    found = deltaw.squeeze(adapted, error=0.3)
    assert 0 < found.error <= 0.3
    cost = sum(B.numel() + A.numel() for B, A in found.factors.values())
    again = deltaw.squeeze(adapted, budget=4 * cost)
    assert again.error == pytest.approx(found.error)
    assert sum(B.numel() + A.numel() for B, A in again.factors.values()) <= cost
    for bad in ({"error": 1.5}, {"budget": "12 parsec"}, {"budget": 8}, {"rank": 0}, {}, {"rank": 2, "error": 0.1}, {"ranks": {"nowhere": 2}}):
        with pytest.raises(SpecError):
            deltaw.squeeze(adapted, **bad)


def test_first_moments_turn_as_gradients_do():
    """B' = B R, A' = L A: after a change of basis without loss, gradients of the new factors are the turned ones of the old."""
    grads = []
    for rank in (None, 6):
        net, adapted = random_lora()
        old = {k: t.detach().clone() for k, t in adapted.trainable().items()}
        loss_of(net, 0, F64).backward()
        grads.append({k: t.grad.clone() for k, t in adapted.trainable().items()})
        if rank:
            s = 2.0
            for site in change_of(adapted):
                B, A = old[f"{site}.B"], old[f"{site}.A"]
                Rb, Ra = torch.linalg.qr(B)[1], torch.linalg.qr(A.mT)[1]
                U, S, V = torch.linalg.svd(s * Rb @ Ra.mT)
                R = torch.linalg.solve(Rb, U * (S / s).sqrt())
                L = torch.linalg.solve(Ra, ((S / s).sqrt()[:, None] * V).mT).mT
                net2, other = random_lora()
                with torch.no_grad():
                    for k, t in other.trainable().items():
                        t.copy_(old[k])
                    other.entries()[site].get("B").copy_(B @ R)
                    other.entries()[site].get("A").copy_(L @ A)
                loss_of(net2, 0, F64).backward()
                torch.testing.assert_close(other.entries()[site].get("B").grad, grads[0][f"{site}.B"] @ L.mT, rtol=0, atol=1e-9)
                torch.testing.assert_close(other.entries()[site].get("A").grad, R.mT @ grads[0][f"{site}.A"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("moments", ["reset", "turn"])
def test_the_ladder_goes_down_in_training_and_is_saved(moments, tmp_path):
    net = Net(dtype=F64)
    plan = deltaw.Plan(deltaw.methods.LoRA(r=6, alpha=12.0), rules={"key": "lora_squeeze", "ladder": [6, 4, 2], "moments": moments})
    adapted = deltaw.attach(net, plan)
    optimizer = adapted.optimizer(1e-2, steps=12)
    steps(net, adapted, optimizer, 0, 12)
    assert set(adapted.ranks().values()) == {2} and len(adapted.events) == 2
    y = net(batch(0, F64)[0])
    adapted.save(tmp_path / "a")
    again = Net(dtype=F64)
    deltaw.load(again, tmp_path / "a")
    torch.testing.assert_close(again(batch(0, F64)[0]), y, rtol=0, atol=1e-12)


def test_a_new_task_leaves_the_function_and_starts_afresh():
    net = Net(dtype=F64)
    adapted = deltaw.attach(net, {"key": "codyra", "r": 4, "kappa": 0.05})
    for task in (1, 2):
        optimizer = adapted.optimizer(5e-2, steps=STEPS)
        steps(net, adapted, optimizer, 0, STEPS)
        y, live = net(batch(0, F64)[0]), sum(adapted.ranks().values())
        added = deltaw.next_task(adapted, task)
        assert 0 < sum(added.values()) <= live
        torch.testing.assert_close(net(batch(0, F64)[0]), y, rtol=0, atol=1e-10)
        assert all(not e.get("B").any() for e in adapted.entries().values())
