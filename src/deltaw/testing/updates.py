"""The laws of update rules, and their comparison with closed forms: what `check` is for structures.

A rule runs on a whole tiny model (rules of matrices), on one that LoRA is attached to (rules of factors: `pairs`), or on one
that the structure it was made for is attached to (`structure`, a configuration).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..attach import attach
from ..methods.update import UPDATES, About
from ..methods.update.algebra import SubOptimizer
from ..optimize import optimizer as over
from ..plan import Plan
from ..spec import METHODS, from_config
from .closed import closed
from .laws.base import NotApplicable, close, must
from .tiny import WIDTH, Tiny, settle, values

STEPS, RATE, HALF = 9, 1e-2, 5  # rules with a period get one of 4 here: a refresh before the break and one after it


def rules_of(key: str) -> list[Any]:
    """The instances that the closed form names, else the defaults at small sizes."""
    found = closed("update", key)
    return list(found.RULES) if found is not None else [small(UPDATES[key]())]


def small(rule: Any) -> Any:
    """A period of 4, ranks of 3."""
    names = {f.name for f in fields(rule)}
    return replace(rule, **{k: v for k, v in {"every": 4, "r": 3}.items() if k in names})


def problem(rule: Any, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, torch.optim.Optimizer, dict[str, nn.Parameter]]:
    model = settle(Tiny(), dtype)
    if structure := getattr(rule, "structure", None):
        adapted = attach(model, Plan(from_config(structure), update=rule))
        return model, adapted.optimizer(RATE), adapted.trainable()
    if getattr(rule, "pairs", False):
        adapted = attach(model, Plan(METHODS["lora"](r=3, alpha=6.0), update=rule))  # type: ignore[call-arg]
        with torch.no_grad():
            for name, p in adapted.trainable().items():
                p.copy_(values(*p.shape, name=name, std=0.3, dtype=p.dtype))
        return model, adapted.optimizer(RATE), adapted.trainable()
    return model, over(model, rule, RATE), dict(model.named_parameters())


def batch(step: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return values(8, WIDTH, name=f"x{step}", dtype=dtype), values(8, WIDTH, name=f"y{step}", dtype=dtype)


def loss_of(model: nn.Module, x: Tensor, y: Tensor, parts: int = 1) -> Tensor:
    out: Tensor = (model(x) - y).square().mean() / parts
    return out


def run(rule: Any, steps: int = STEPS, parts: int = 1, inside: bool = False, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    model, opt, p = problem(rule, dtype)
    _go(model, opt, range(steps), parts, inside, dtype)
    return {k: t.detach().clone() for k, t in p.items()}


def _go(model: nn.Module, opt: Any, steps: range, parts: int, inside: bool, dtype: torch.dtype) -> None:
    def go() -> None:
        for step in steps:
            x, y = batch(step, dtype)
            opt.zero_grad()
            for a, b in zip(x.chunk(parts), y.chunk(parts)):
                loss_of(model, a, b, parts).backward()  # type: ignore[no-untyped-call]
            opt.step()

    if inside:
        with opt.in_backward(parts):
            go()
    else:
        go()


def accumulation_is_one_batch(rule: Any) -> str:
    """Four micro-batches move the model as one batch does, to rounding."""
    one, four = run(rule), run(rule, parts=4)
    for name in one:
        close(name, four[name], one[name], 1e-7)
    return f"{STEPS} steps"


def steps_inside_backward_are_steps(rule: Any) -> str:
    """in_backward gives what step() gives: bit for bit with one batch, to rounding with four micro-batches."""
    if not isinstance(problem(rule)[1], SubOptimizer):
        raise NotApplicable("it is one of torch's optimisers, which step when they are told to")
    one, inside, four = run(rule), run(rule, inside=True), run(rule, parts=4, inside=True)
    for name in one:
        must(torch.equal(inside[name], one[name]), f"{name} differs when the step is made inside backward")
        close(name, four[name], one[name], 1e-7)
    return f"{STEPS} steps"


def resumed_is_uninterrupted(rule: Any) -> str:
    """Stopped after 5 of 9 steps, in the middle of a period, and gone on from the state dict: the same bits."""
    for dtype in (torch.float32, torch.bfloat16):
        whole = run(rule, dtype=dtype)
        model, opt, p = problem(rule, dtype)
        _go(model, opt, range(HALF), 1, False, dtype)
        state, weights = copy.deepcopy(opt.state_dict()), {k: t.detach().clone() for k, t in p.items()}
        model, opt, p = problem(rule, dtype)
        with torch.no_grad():
            for k, t in p.items():
                t.copy_(weights[k])
        opt.load_state_dict(state)
        _go(model, opt, range(HALF, STEPS), 1, False, dtype)
        for k, t in p.items():
            must(torch.equal(t, whole[k]), f"{dtype}: {k} is another after the resume")
    return "float32 and bfloat16"


def state_is_tensors(rule: Any) -> str:
    """The state holds tensors (nested in dicts) only, keyed by name."""
    model, opt, p = problem(rule)
    _go(model, opt, range(2), 1, False, torch.float64)
    found = list(leaves(opt.state_dict()["state"]))
    must(all(isinstance(t, Tensor) for t in found), f"found {sorted({type(t).__name__ for t in found})}")
    names = [n for g in opt.state_dict()["param_groups"] for n in g["param_names"]]
    must(sorted(names) == sorted(p), "the groups do not name every parameter once")
    return f"{len(found)} tensors"


def leaves(v: Any) -> Iterator[Any]:
    """What nested dicts hold in the end."""
    if isinstance(v, dict):
        for inner in v.values():
            yield from leaves(inner)
    else:
        yield v


def state_floats(optimizer: torch.optim.Optimizer, p: Tensor) -> int:
    """Numbers in the floating-point state of one parameter, counters and single numbers apart."""
    return sum(t.numel() for t in leaves(optimizer.state[p]) if isinstance(t, Tensor) and t.is_floating_point() and t.dim())


def state_is_as_large_as_stated(rule: Any) -> str:
    """`floats(m, n)`, what the rule says of the state of an m x n matrix (or of the two factors of one), is what there is."""
    if not hasattr(rule, "floats"):
        raise NotApplicable("it makes no statement (floats) about the size of its state")
    for m, n in ((24, 10), (10, 24), (12, 12)):
        lin = nn.Linear(n, m, bias=False, dtype=torch.float64)
        tensors: Any = {"lin.weight": lin.weight}
        if getattr(rule, "pairs", False):
            r = 3
            tensors = {"lin.A": nn.Parameter(values(r, n, name="A")), "lin.B": nn.Parameter(values(m, r, name="B"))}
        opt = rule.optimizer(tensors, RATE)
        for step in range(2):
            for k, t in tensors.items():
                t.grad = values(*t.shape, name=f"{k}{step}", dtype=t.dtype)
            opt.step()
        got = sum(state_floats(opt, t) for t in tensors.values())
        want = rule.floats(m, n, 3) if getattr(rule, "pairs", False) else rule.floats(m, n)
        must(got == want, f"{m} x {n}: {got} numbers are kept, {want} are stated")
    return "three shapes"


def nothing_moves_at_rate_zero(rule: Any) -> str:
    """With lr = 0 (the first step of a warm-up) every weight stays, whatever the state does."""
    if hasattr(rule, "structure"):
        raise NotApplicable("its tensors are one of many forms of the same weight, and take another one in a step")
    model, opt, p = problem(rule)
    before = {k: t.detach().clone() for k, t in p.items()}
    for g in opt.param_groups:
        g["lr"] = 0.0
    _go(model, opt, range(2), 1, False, torch.float64)
    for k, t in p.items():
        close(k, t, before[k], 1e-12)
    return f"{len(p)} tensors"


def learns(rule: Any) -> str:
    """60 steps on one batch lower the loss."""
    model, opt, _ = problem(rule)
    x, y = batch(0, torch.float64)
    first = loss_of(model, x, y).item()
    for _step in range(60):
        opt.zero_grad()
        loss_of(model, x, y).backward()  # type: ignore[no-untyped-call]
        opt.step()
    last = loss_of(model, x, y).item()
    must(last < first, f"the loss went from {first:.4f} to {last:.4f}")
    return f"{first:.3f} to {last:.3f}"


LAWS: dict[str, Callable[[Any], str]] = {
    f.__name__: f
    for f in (
        accumulation_is_one_batch, steps_inside_backward_are_steps, resumed_is_uninterrupted, state_is_tensors,
        state_is_as_large_as_stated, nothing_moves_at_rate_zero, learns,
    )
}  # fmt: skip


def compare_closed(rule: Any) -> str:
    """Trajectories over 9 steps, wide and tall matrices (or pairs of factors), on a smooth loss, in float64; or what a closed
    form has of its own, check(rule)."""
    judge = closed("update", rule.key)
    assert judge is not None
    if hasattr(judge, "check"):
        return str(judge.check(rule))
    s = 2.0
    shapes = {"wide": (6, 12), "tall": (12, 6)}
    aim = {k: values(*mn, name=f"aim {k}") for k, mn in shapes.items()}
    base = {k: values(*mn, name=f"base {k}", std=0.3) for k, mn in shapes.items()}
    pairs = getattr(judge, "PAIRS", getattr(rule, "pairs", False))
    if pairs:
        start = {f"{k}.{w}": values(*((m, 3) if w == "B" else (3, n)), name=f"{k}{w}", std=0.4) for k, (m, n) in shapes.items() for w in "AB"}
    else:
        start = {f"{k}.weight": values(*mn, name=f"{k}w") for k, mn in shapes.items()} | {"tall.bias": values(12, name="bias")}

    def loss(p: dict[str, Tensor]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for k in shapes:
            W = base[k] + s * p[f"{k}.B"] @ p[f"{k}.A"] if pairs else p[f"{k}.weight"]
            total = total + torch.log(torch.cosh(W - aim[k]) + 0.1 * (W @ aim[k].mT).square().sum() / 100).sum()
        return total if pairs else total + (p["tall.bias"] - 1).pow(4).sum()

    def grad(p: dict[str, Tensor]) -> dict[str, Tensor]:
        q = {k: t.detach().clone().requires_grad_() for k, t in p.items()}
        loss(q).backward()  # type: ignore[no-untyped-call]
        return {k: t.grad for k, t in q.items() if t.grad is not None}

    p = {k: nn.Parameter(t.clone()) for k, t in start.items()}
    opt = rule.optimizer(p, RATE, about=About(scale=lambda site: s))
    for _ in range(STEPS):
        for k, g in grad(dict(p)).items():
            p[k].grad = g
        opt.step()
    want = judge.closed(rule, {k: t.clone() for k, t in start.items()}, grad, RATE, STEPS, s)
    must(set(want) == set(p), f"the closed form gives {sorted(want)}; expected {sorted(p)}")
    for k in p:
        must(not torch.equal(p[k], start[k]), f"{k} has not moved")
        close(k, p[k], want[k], getattr(judge, "TOLERANCE", 1e-8))
    return f"closed form, {STEPS} steps"
