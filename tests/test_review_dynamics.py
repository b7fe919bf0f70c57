"""Defects found by reading against the specification: one test each, in the words of what was promised."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deltaw
from deltaw import Plan
from deltaw.errors import SpecError, StateMismatch
from deltaw.methods import LoRA
from deltaw.methods.init.gora import GoRA
from deltaw.methods.structure.lt_sft import LTSFT
from deltaw.methods.update import UPDATES
from deltaw.methods.update.algebra import SGD, Plain, Step, Sub, SubOptimizer, Unit, Whole
from deltaw.methods.update.algebra import sub as sub_module
from deltaw.methods.update.badam import BAdam
from deltaw.methods.update.dlrt import DLRTSteps
from deltaw.testing import updates
from deltaw.testing.tiny import Conv1D, Lookup, Tiny, settle, values

F64 = torch.float64


def optimizer(
    rule: Any, shapes: dict[str, tuple[int, ...]], lr: float = 1.0, **kw: Any
) -> tuple[SubOptimizer, dict[str, Any]]:
    p = {k: nn.Parameter(values(*s, name=k)) for k, s in shapes.items()}
    return SubOptimizer(p, [Unit(k, rule, {"W": t}) for k, t in p.items()], lr, **kw), p


def push(*params: Tensor) -> None:
    """A backward pass that gives each of them a gradient of ones."""
    sum(t.sum() for t in params).backward()


SGDS = Sub(Whole(), SGD(), every=0)


# ---- in_backward


def test_a_schedule_is_heard_inside_backward_after_a_state_was_loaded():
    opt, p = optimizer(SGDS, {"a": (2, 3)})
    with opt.in_backward():
        push(p["a"])
        opt.step()
        opt.load_state_dict(opt.state_dict())
        opt.param_groups[0]["lr"] = 0.0
        before = p["a"].detach().clone()
        push(p["a"])
    assert torch.equal(p["a"], before)


def test_a_block_that_broke_off_leaves_no_count_of_gradients():
    opt, p = optimizer(SGDS, {"a": (2, 3), "b": (2, 3)})
    with pytest.raises(KeyError), opt.in_backward(2):
        push(p["a"])
        raise KeyError
    opt.zero_grad()
    before = p["a"].detach().clone()
    with opt.in_backward(2):
        push(*p.values())
        assert torch.equal(p["a"], before)  # one of two micro-batches
        push(*p.values())
    assert torch.equal(p["a"], before - 2)


def test_a_frozen_tensor_has_no_gradient_to_wait_for_and_leaves_no_hooks():
    opt, p = optimizer(SGDS, {"a": (2, 3), "b": (2, 3)})
    p["b"].requires_grad_(False)
    before = p["a"].detach().clone()
    with opt.in_backward():
        push(p["a"])
    assert torch.equal(p["a"], before - 1)
    push(p["a"])  # outside of the block a backward pass moves nothing
    assert torch.equal(p["a"], before - 1) and p["a"].grad is not None


def test_what_moves_late_is_clipped_as_well():
    """A part of the model that saw fewer passes is moved by step()."""
    opt, p = optimizer(SGDS, {"a": (2, 3), "b": (2, 3)})
    before = p["b"].detach().clone()
    with opt.in_backward(2, max_norm=0.5):
        push(p["a"], 1e3 * p["b"])
        push(p["a"])
        opt.step()
    assert float((p["b"] - before).detach().norm()) == pytest.approx(0.5, rel=1e-3)
    assert p["b"].grad is None


@pytest.mark.parametrize("what", ["rule", "outer"])
def test_what_acts_before_a_step_is_not_passed_over_inside_backward(what):
    """A rule would see no gradient any more, an outer optimiser weights that have moved already."""
    model = settle(Tiny(), F64)
    if what == "rule":
        plan = Plan({"key": "lora_fa", "r": 2}, update={"key": "frugal", "every": 4}, rules=("lora_fa",))
        opt: Any = deltaw.attach(model, plan).optimizer(1e-2)
    else:
        opt = deltaw.optimizer(model, {"key": "diloco", "inner": {"key": "galore", "r": 2}}, 1e-2)
    with pytest.raises(SpecError, match="before a step"), opt.in_backward():
        pass


# ---- parameters that come, go, or have no gradient


def test_a_group_that_no_rule_moves_is_refused():
    opt, _ = optimizer(SGDS, {"a": (2, 3)})
    with pytest.raises(SpecError, match="unit"):
        opt.add_param_group({"params": [("b", nn.Parameter(torch.ones(2, 3)))]})
    assert len(opt.param_groups) == 1


def test_a_state_of_tensors_in_another_order_is_refused():
    """Torch goes by position and takes over the names of the state."""
    one, two = (optimizer(SGDS, dict.fromkeys(names, (2, 3)))[0] for names in ("ab", "ba"))
    two.load_state_dict(two.state_dict())
    with pytest.raises(StateMismatch, match="'b'.*'a'"):
        one.load_state_dict(two.state_dict())
    assert one.param_groups[0]["param_names"] == ["a", "b"]


def test_a_tensor_that_a_rule_has_made_anew_goes_on_being_trained():
    """LT-SFT puts a shorter v in the place of the first one."""
    model = settle(Tiny(), torch.float32)
    plan = Plan(LTSFT(keep=0.1, steps=2), targets=["sq"], update={"key": "galore", "r": 2})
    adapted = deltaw.attach(model, plan)
    opt = adapted.optimizer(1e-2)
    x = values(4, 16, name="x", dtype=torch.float32)
    for _ in range(4):
        opt.zero_grad()
        model(x).square().mean().backward()
        opt.step()
    assert all(v.any() for k, v in adapted.trainable().items() if k.endswith(".v"))


def test_turns_go_by_the_optimisers_steps_also_where_a_unit_has_no_gradient():
    p = {f"layers.{i}.weight": nn.Parameter(values(2, 3, name=f"l{i}")) for i in range(2)}
    opt = BAdam(every=1, order="ascending").optimizer(p, 1e-2)
    first, second = p.values()
    push(second)  # step 0 is the turn of the first block, which no token has reached
    opt.step()
    opt.zero_grad()
    before = [t.detach().clone() for t in p.values()]
    push(first, second)
    opt.step()
    assert torch.equal(first, before[0]) and not torch.equal(second, before[1])


def test_a_step_of_the_integrator_is_one_step_for_hooks():
    optimizer(SGDS, {"a": (2, 3)})  # another optimiser of this library in the same process
    p = {f"s.{k}": nn.Parameter(values(*s, name=k)) for k, s in {"U": (6, 4), "S": (4, 4), "V": (5, 4)}.items()}
    for t in p.values():
        t.data[:, 2:] = 0  # rank 2 of 4
    p["s.S"].data[2:] = 0
    opt, seen = DLRTSteps().optimizer(p, 1e-2), []
    opt.register_step_post_hook(lambda *_: seen.append(1))
    push(*p.values())
    opt.step()
    assert len(seen) == 1


def test_a_gradient_that_is_not_finite_is_named():
    model = settle(Tiny(), torch.float32)
    opt = deltaw.optimizer(model, {"key": "galore", "r": 2}, 1e-2)
    model(values(4, 16, name="x", dtype=torch.float32)).square().mean().backward()
    model.blocks[0].up.weight.grad[0, 0] = float("nan")
    with pytest.raises(SpecError, match="blocks.0.up.weight.*not finite"):
        opt.step()


def test_fused_kernels_find_the_step_count_where_the_tensor_is(monkeypatch):
    """On a GPU a fused kernel reads it there; a count on the CPU would be an illegal address."""
    seen = []
    monkeypatch.setattr(
        sub_module, "adamw", lambda params, *rest, **kw: seen.append((params[0], rest[4][0], kw["fused"]))
    )

    with torch._subclasses.FakeTensorMode():
        t = torch.empty(3, device="cuda")
        Plain().step({"W": t}, {"W": t}, {"W": {}}, Step({"W": 1.0}, {"W": 0.0}, 0, "w"))
    ((param, count, fused),) = seen
    assert not fused or count.device == param.device


@pytest.mark.parametrize("key", ["adamw", "galore"])
def test_moments_from_a_file_fit_a_tensor_of_any_layout(tmp_path, key):
    """Fused kernels walk through memory: files hold rows, and this table is stored by columns."""
    from deltaw.train import checkpoint

    found = []
    for broken in (False, True):
        model = nn.Sequential(nn.Embedding(5, 4))
        model[0].weight = nn.Parameter(values(4, 5, name="table", dtype=torch.float32).mT)
        opt = deltaw.optimizer(model, key, 1e-2)
        for step in range(4):
            if broken and step == 2:
                checkpoint.write(tmp_path, opt.state_dict())
                opt.load_state_dict(checkpoint.read(tmp_path))
            opt.zero_grad()
            (model(torch.arange(5)) * values(5, 4, name=f"g{step}", dtype=torch.float32)).sum().backward()
            opt.step()
        found.append(model[0].weight.detach().clone())
    assert torch.equal(*found)


@pytest.mark.parametrize("key", sorted(UPDATES))
def test_a_run_goes_on_from_files_to_the_bit(tmp_path, key):
    """Files hold every tensor in rows: a product of others may round otherwise."""
    from deltaw.train import checkpoint

    for rule in updates.rules_of(key):
        whole = updates.run(rule, dtype=torch.float32)
        model, opt, p = updates.problem(rule, torch.float32)
        updates._go(model, opt, range(updates.HALF), 1, False, torch.float32)
        checkpoint.write(tmp_path, opt.state_dict())
        weights = {k: t.detach().clone() for k, t in p.items()}
        model, opt, p = updates.problem(rule, torch.float32)
        with torch.no_grad():
            for k, t in p.items():
                t.copy_(weights[k])
        opt.load_state_dict(checkpoint.read(tmp_path))
        updates._go(model, opt, range(updates.HALF, updates.STEPS), 1, False, torch.float32)
        assert all(torch.equal(t, whole[k]) for k, t in p.items()), rule


def test_momentum_begins_with_the_first_gradient_of_each_tensor():
    p = {k: nn.Parameter(torch.ones(2)) for k in "ab"}
    opt = UPDATES["sgd"](momentum=0.5).optimizer(p, 1.0)
    push(p["a"])
    opt.step()
    push(*p.values())  # a has a gradient of twos now
    opt.step()
    assert torch.equal(p["a"], torch.full((2,), -2.5)) and torch.equal(p["b"], torch.zeros(2))


# ---- over whole models


class HeadFirst(nn.Module):
    """A head that is named before the table it is tied to."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.table = nn.Linear(8, 12, bias=False), nn.Embedding(12, 8)
        self.table.weight = self.head.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.table(ids))


class Wrapped(nn.Module):
    """What DDP and torch.compile do to names."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_a_table_is_a_table_under_any_name():
    opt = deltaw.optimizer(HeadFirst(), {"key": "galore", "r": 2})
    assert [type(u.rule) for u in opt.units] == [Plain]


def test_the_head_of_a_wrapped_model_is_moved_by_adamw():
    from train_kit import tiny_model

    opt = deltaw.optimizer(Wrapped(tiny_model(tie_word_embeddings=False)), {"key": "galore", "r": 2})
    assert type({u.name: u.rule for u in opt.units}["module.lm_head.weight"]) is Plain


def test_a_table_that_a_plan_trains_as_it_is_counts_as_one():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.up = nn.Embedding(12, 8), nn.Linear(8, 8)

        def forward(self, ids: Tensor) -> Tensor:
            return self.up(self.embed(ids))

    plan = Plan(LoRA(2), targets=["up"], train_modules=["embed"], update={"key": "galore", "r": 2})
    opt: Any = deltaw.attach(Net(), plan).optimizer(1e-2)
    assert {type(u.rule) for u in opt.units if "embed" in u.name} == {Plain}


def test_rows_are_outputs_also_where_a_weight_is_stored_transposed():
    """Weight normalisation of a Conv1D is that of the same linear layer."""
    linear, conv = nn.Linear(6, 10, dtype=F64), Conv1D(10, 6).double()
    with torch.no_grad():
        conv.weight.copy_(linear.weight.mT)
        conv.bias.copy_(linear.bias)
    x = values(5, 6, name="x")
    for layer in (linear, conv):
        opt = deltaw.optimizer(layer, {"key": "gradnormlorp", "r": 3, "every": 2, "svd": "exact"}, 1e-2)
        for _ in range(5):
            opt.zero_grad()
            torch.log(torch.cosh(layer(x) - 1)).sum().backward()
            opt.step()
    torch.testing.assert_close(conv.weight.mT, linear.weight)


# ---- initialisations and probes


def test_gora_on_a_table_leaves_something_to_learn():
    """On an embedding LoRA's A starts at zero, and B = ... G Aᵀ would be zero, too."""
    model, ids = settle(Lookup(), F64), torch.arange(12).view(3, 4)

    def loss(m: nn.Module, x: Tensor) -> Tensor:
        return (m(x) - 1).square().mean()

    plan = Plan(LoRA(4), targets=["blocks.0"], init=GoRA(r_min=2))
    before = float(loss(model, ids).detach())
    adapted = deltaw.attach(model, plan, stats=deltaw.probe(model, [ids], plan, loss=loss))
    assert all(t.any() for t in adapted.trainable().values())
    assert float(loss(model, ids).detach()) < before


class Routed(nn.Module):
    """The second batch sends nothing to the expert."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.expert = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return y.index_add(0, (x[:, 0] > 0).nonzero()[:, 0], self.expert(y[x[:, 0] > 0]))


def test_a_batch_without_tokens_for_a_layer_is_passed_over():
    some, none = torch.ones(3, 4), -torch.ones(3, 4)
    needs = ["inputs", "inputs_by_max", "components"]
    stats = deltaw.probe(Routed(), [some, none], ["first", "expert"], needs)
    assert all(t.isfinite().all() for found in stats.sites.values() for t in found.values())


def test_a_loss_that_no_site_reaches_is_said_so():
    model = nn.ModuleDict({"used": nn.Linear(4, 4), "idle": nn.Linear(4, 4)})
    with pytest.raises(SpecError, match="idle"):
        deltaw.probe(model, [torch.ones(2, 4)], ["idle"], ["gradient"], loss=lambda m, x: m["used"](x).square().mean())


def test_inputs_that_are_not_finite_are_said_so():
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(SpecError, match="not finite"):
        deltaw.probe(model, [torch.full((9, 4), float("nan"))], ["0"], ["components"], components=2)


def test_a_probe_leaves_running_statistics_alone():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
    before = {k: t.clone() for k, t in model.state_dict().items()}
    deltaw.probe(model, [torch.randn(8, 4)], ["0", "2"], ["gradient"], loss=lambda m, x: m(x).square().mean())
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())


def test_the_cache_looks_into_nested_batches(tmp_path):
    def loss(m: nn.Module, batch: Any) -> Tensor:
        return (m(batch["inside"]["x"]) * batch["weights"][0]).square().mean()

    def ask(x: float, w: float) -> Tensor:
        batch = {"inside": {"x": torch.full((2, 4), x)}, "weights": [w]}
        model = nn.Sequential(nn.Linear(4, 4))
        with torch.no_grad():
            model[0].weight.fill_(0.1)
            model[0].bias.fill_(0.1)
        return deltaw.probe(model, [batch], ["0"], ["gradient"], loss=loss, cache=tmp_path).sites["0"]["gradient"]

    assert not torch.equal(ask(1.0, 1.0), ask(2.0, 1.0))
    assert not torch.equal(ask(1.0, 1.0), ask(1.0, 2.0))


def test_names_with_dots_do_not_meet_in_a_checkpoint(tmp_path):
    from deltaw.train import checkpoint

    state = {"a": {"b.c": torch.zeros(1)}, "a.b": {"c": torch.ones(1)}}
    checkpoint.write(tmp_path, state)
    assert checkpoint.read(tmp_path) == state


# ---- rules on what they are not for


def test_restarts_are_no_progress_that_an_outer_optimiser_averages():
    """With DiLoCo around it a restart was half undone: the weight was another one after it."""
    plan = Plan(LoRA(2), rules={"key": "relora", "every": 2, "restart_warmup": 0}, update={"key": "diloco", "every": 2})
    with pytest.raises(SpecError, match="relora.*outer"):
        deltaw.attach(settle(Tiny(), torch.float32), plan).optimizer(1e-2)


@pytest.mark.parametrize("key", ["trp", "sst", "lora_ggpo"])
def test_a_rule_for_other_tensors_is_refused_at_once(key):
    adapted = deltaw.attach(settle(Tiny(), torch.float32), Plan(LoRA(2), rules=(key,)))
    with pytest.raises(SpecError, match=f"{key}.*lora|lora.*{key}|blocks"):
        adapted.optimizer(1e-2)


def test_frames_of_hd_pissa_hold_no_more_than_themselves():
    model = nn.Linear(6, 8, bias=False)
    opt = deltaw.optimizer(model, {"key": "hd_pissa", "r": 1, "workers": 2}, 1e-2)
    model(torch.ones(2, 6)).sum().backward()
    opt.step()
    for t in opt.state[model.weight]["frame"].values():
        assert t.untyped_storage().nbytes() == t.numel() * t.element_size()
