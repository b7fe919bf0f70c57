"""The laws of rules between optimiser steps: what `check` is for structures.

A rule runs on a tiny model, for the method that asks for it or under a plan that does, at sizes at which it acts within a few
steps (`ASKED`). A rule that is not listed there runs on LoRA.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..attach import Adapted, attach
from ..errors import SpecError
from ..files import load
from ..plan import Plan
from ..rules import STATE
from ..spec import RULES, from_config
from .closed import closed
from .laws.base import BF16, F32, F64, Case, NotApplicable, base_state, close, digest, must, same
from .tiny import WIDTH, Tiny, values
from .updates import HALF, RATE, STEPS, leaves, loss_of

# rule: the method it runs on, and what else the plan says
ASKED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "adalora": ({"key": "adalora", "r": 4, "target_r": 2, "tinit": 1, "deltaT": 2}, {}),
    "airllm": ({"key": "airllm", "r": 4, "bandwidth": 400.0, "snr": (5.0, 40.0)}, {}),
    "allocate": ({"key": "snella", "q": 4, "sparsity": 0.4, "every": 2, "T": 3}, {}),
    "ard_lora": ({"key": "ard_lora", "r": 4, "r0": 2, "heads": 2, "lam": 0.1}, {}),
    "asa": (
        {"key": "adamss", "R": 6, "K": 4, "rk": 1},
        {"rules": {"key": "asa", "target": 5, "begin": 1, "end": 8, "every": 2}},
    ),
    "avf": ({"key": "vectorfit"}, {"rules": {"key": "avf", "t_i": 1, "t_f": 2, "k": 2, "n_f": 3}}),
    "b_lora": ({"key": "b_lora", "r": 3, "lam_rank": 0.1}, {}),
    "balance": ({"key": "smora", "r": 4, "k": 2, "u": 0.1}, {}),
    "bound": ({"key": "cpt", "ids": [3, 1, 4]}, {}),
    "calibrate": ({"key": "shira", "r": 2, "mask": "grad", "steps": 2}, {}),
    "codyra": ({"key": "codyra", "r": 3, "kappa": 0.3, "dense": 0.0}, {}),
    "dora_dynamic": ({"key": "dora_dynamic", "r": 4, "target_r": 2, "every": 2, "start_at": 0.05, "end_at": 0.6}, {}),
    "dylora": ({"key": "dylora", "r": 4}, {}),
    "elalora": ({"key": "elalora", "r": 3, "every": 2, "t_i": 0.02}, {}),
    "elastic": ({"key": "lonas", "ranks": (4, 2), "widths": (1.0, 0.5), "wide": "up|sq"}, {}),
    "increlora": ({"key": "increlora", "target_r": 4, "every": 2, "warmup": 1}, {}),
    "localise": ({"key": "losia", "p": 0.25, "T": 2}, {}),
    "lora_fa": ({"key": "lora_fa", "r": 3}, {"rules": "lora_fa"}),
    "lora_ggpo": ({"key": "lora_ggpo", "sigma": 0.3, "beta": 0.3}, {}),
    "lora_squeeze": ({"key": "lora", "r": 6}, {"rules": {"key": "lora_squeeze", "ladder": (6, 4, 2), "T": 8}}),
    "lottery": ({"key": "lt_sft", "keep": 0.1, "steps": 3, "l1": 0.1}, {}),
    "lowrank_refactor": (
        {"key": "low_rank", "r": 3},
        {"rules": {"key": "lowrank_refactor", "every": 4, "recovery": 2}},
    ),
    "periodic_lora": ({"key": "lora", "r": 3}, {"rules": {"key": "periodic_lora", "every": 4, "mu": 0.3}}),
    "prilora": ({"key": "prilora", "r": 3, "every": 2}, {}),
    "ramp": ({"key": "singlora", "r": 3, "T": 5}, {}),
    "relora": (
        {"key": "lora", "r": 3},
        {"rules": {"key": "relora", "every": 2, "cycle": 4, "prune": 0.5, "restart_warmup": 2}},
    ),
    "reselect": ({"key": "lift", "k": 2, "f": 4, "every": 3}, {}),
    "row_sparsity": ({"key": "roselora", "r": 3, "kappa": 0.3, "t_i": 1, "t_f": 6}, {}),
    "shrink": ({"key": "s2_lora", "r": 4, "shrink": 1e-3}, {}),
    "sora": ({"key": "sora", "r": 4, "lambda2": 0.1}, {}),
    "sst": ({"key": "sst", "r": 3, "every": 4, "warmup": 2}, {}),
    "switchlora": (
        {"key": "lora", "r": 6},
        {
            "init": "switchlora",
            "update": "switchlora",
            "rules": {"key": "switchlora", "every": 4, "decay": 50, "rest": 2},
        },
    ),
    "trp": ({"key": "trp", "every": 4}, {}),
}


def plans_of(key: str) -> list[Plan]:
    """Plans that the rule acts in; none for one that needs a model of a certain form, which its closed form brings."""
    if hasattr(closed("rules", key), "FORM"):
        return []
    if key in ASKED:
        method, more = ASKED[key]
    else:
        method, more = {"key": "lora", "r": 3}, {"rules": small(key)}
    return [Case(from_config(method)).plan(Tiny(), **more)]


def small(key: str) -> Any:
    """The rule with a period of 4."""
    rule = RULES[key]()
    return replace(rule, every=4) if "every" in {f.name for f in fields(rule)} else rule


def problem(plan: Plan, dtype: torch.dtype = F64) -> tuple[nn.Module, Adapted, torch.optim.Optimizer]:
    model = fresh(plan, dtype)
    adapted = attach(model, plan)
    return model, adapted, installed(adapted)


def fresh(plan: Plan, dtype: torch.dtype) -> nn.Module:
    model: nn.Module = Case(plan.method, dtype).tiny().train()  # type: ignore[arg-type]
    return model


def installed(adapted: Adapted) -> torch.optim.Optimizer:
    try:
        return adapted.optimizer(RATE, steps=40)
    except SpecError as error:
        if any(rule.key in ASKED for rule in adapted.plan.rules) or not adapted.plan.rules:
            raise
        raise NotApplicable(f"it is not for LoRA, and no method asks for it: {error}") from None


def go(
    model: nn.Module, optimizer: Any, steps: range, dtype: torch.dtype = F64, parts: int = 1, looks: bool = False
) -> None:
    """Steps on batches by number, in micro-batches; with looks, an evaluation in the middle of each."""
    for step in steps:
        x, y = (values(8, 3, WIDTH, name=f"{word}{step}", dtype=dtype) for word in "xy")
        optimizer.zero_grad()
        for a, b in zip(x.chunk(parts), y.chunk(parts)):
            loss_of(model, a, b, parts).backward()  # type: ignore[no-untyped-call]
        if looks:
            with torch.no_grad():
                model.eval()(x)
            model.train()
        optimizer.step()


def run(plan: Plan, dtype: torch.dtype = F64, **kw: Any) -> dict[str, Tensor]:
    model, adapted, optimizer = problem(plan, dtype)
    go(model, optimizer, range(STEPS), dtype, **kw)
    return copied(adapted)


def copied(adapted: Adapted) -> dict[str, Tensor]:
    return {k: t.detach().clone() for k, t in adapted.state().items()}


def acts(plan: Plan) -> str:
    """Without its rules the same plan ends elsewhere."""
    got = run(plan)
    model = fresh(plan, F64)
    bare = attach(model, plan)
    go(model, plan.update.optimizer(bare.trainable(), RATE), range(STEPS))
    want = copied(bare)
    moved = [k for k, t in got.items() if k not in want or t.shape != want[k].shape or not torch.equal(t, want[k])]
    must(bool(moved), f"{STEPS} steps with it and without it end in the same tensors")
    must(all(bool(torch.isfinite(t).all()) for t in got.values()), "a tensor is not finite")
    return f"{len(moved)} of {len(got)} tensors"


def resumed_is_uninterrupted(plan: Plan) -> str:
    """Stopped after 5 of 9 steps, and gone on from the adapter's file and the optimiser's state: the same bits."""
    for dtype in (F32, BF16):
        whole = run(plan, dtype)
        model, adapted, optimizer = problem(plan, dtype)
        go(model, optimizer, range(HALF), dtype)
        with tempfile.TemporaryDirectory() as folder:
            adapted.save(f"{folder}/adapter")
            torch.save(optimizer.state_dict(), f"{folder}/state")
            model = fresh(plan, dtype)
            adapted = load(model, f"{folder}/adapter")
            model.train()
            optimizer = installed(adapted)
            optimizer.load_state_dict(torch.load(f"{folder}/state", weights_only=True))
        go(model, optimizer, range(HALF, STEPS), dtype)
        again = copied(adapted)
        must(set(again) == set(whole), f"other tensors: {sorted(set(again) ^ set(whole))}")
        for name, t in whole.items():
            same(f"{dtype}: {name}", again[name], t)
    return "float32 and bfloat16"


def accumulation_is_one_batch(plan: Plan) -> str:
    """Four micro-batches end where one batch does, to rounding."""
    one, four = run(plan), run(plan, parts=4)
    for name, t in one.items():
        close(name, four[name], t, 1e-7)
    return f"{STEPS} steps"


def evaluations_do_not_count(plan: Plan) -> str:
    """Forward passes in evaluation mode between gradient and step change no bit."""
    one, looked = run(plan), run(plan, looks=True)
    for name, t in one.items():
        same(name, looked[name], t)
    return f"{STEPS} steps"


def random_numbers_are_its_own(plan: Plan) -> str:
    """Nothing depends on torch's generator, and nothing moves it."""
    found = []
    for seed in (1, 2):
        model = fresh(plan, F64)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            adapted = attach(model, plan)
            go(model, installed(adapted), range(STEPS))
            must(torch.equal(torch.get_rng_state(), before), "torch's generator has moved")
        found.append(copied(adapted))
    for name, t in found[0].items():
        same(name, found[1][name], t)
    return "two seeds"


def base_is_untouched(plan: Plan) -> str:
    """Not a bit of the base changes, and detaching gives its output back."""
    for dtype in (F64, BF16):
        model = fresh(plan, dtype)
        x = values(2, 3, WIDTH, name="look", dtype=dtype)
        bits, y = digest(base_state(model)), model.eval()(x)
        adapted = attach(model.train(), plan)
        go(model, installed(adapted), range(STEPS), dtype)
        must(digest(base_state(model)) == bits, "the base's weights have changed")
        adapted.detach()
        same("the output after detach", model.eval()(x), y)
    return "float64 and bfloat16"


def memory_is_tensors(plan: Plan) -> str:
    """What it remembers is tensors, by site, in the optimiser's state."""
    model, _, optimizer = problem(plan)
    go(model, optimizer, range(HALF))
    found = list(leaves(optimizer.state_dict()[STATE]))
    must(all(isinstance(t, Tensor) for t in found), f"found {sorted({type(t).__name__ for t in found})}")
    return f"{len(found)} tensors"


LAWS: dict[str, Callable[[Plan], str]] = {
    f.__name__: f
    for f in (
        acts, resumed_is_uninterrupted, accumulation_is_one_batch, evaluations_do_not_count, random_numbers_are_its_own, base_is_untouched,
        memory_is_tensors,
    )
}  # fmt: skip
