"""The laws of initialisations, and their comparison with closed forms: what `check` is for structures.

An init runs on LoRA, or on LoRA-XS where it fills what that method would make itself; what it needs is measured on a tiny
model by `deltaw.probe`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..attach import Adapted, attach
from ..errors import SpecError
from ..files import load
from ..methods.init import INITS, measured
from ..methods.pca import IncrementalPCA
from ..plan import Plan
from ..probe import Stats, probe
from ..spec import METHODS
from .closed import closed
from .laws.base import BF16, F32, F64, NotApplicable, base_state, close, digest, gap, must, push, same
from .tiny import WIDTH, One, Tiny, settle, values

R, ALPHA = 4, 10.0
TOLERANCE = {F64: 1e-12, F32: 2e-6, BF16: 3e-2}


def inits_of(key: str) -> list[Any]:
    """The instances that the closed form names, else the defaults."""
    found = closed("init", key)
    return list(found.INITS) if found is not None else [INITS[key]()]


def plan_of(init: Any, r: int = R, alpha: float = ALPHA, **kw: Any) -> Plan:
    if init.structure:
        return Plan(METHODS[init.structure](r=1), init=init, **kw)  # type: ignore[call-arg]
    method = METHODS["lora_xs" if init.fills else "lora"](r=r, alpha=alpha)  # type: ignore[call-arg]
    return Plan(method, init=init, **kw)


def batches(dtype: torch.dtype) -> list[Tensor]:
    return [values(4, 9, WIDTH, name=f"probe {k}", dtype=dtype) for k in range(3)]


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = (model(x) - 1).square().mean()
    return out


def stats_of(model: nn.Module, plan: Plan) -> Stats | None:
    """What the plan's init needs, on a tiny model; the "original" is its weights before some noise."""
    if not measured(plan.init):
        return None
    before = {k: t + values(*t.shape, name=f"noise {k}", std=0.02).to(t) for k, t in base_state(model).items()}
    return probe(model, batches(next(model.parameters()).dtype), plan, loss=loss_of, original=before)


def started(init: Any, dtype: torch.dtype = F64, **kw: Any) -> tuple[Any, Adapted]:
    model, plan = settle(Tiny(), dtype), plan_of(init, **kw)
    return model, attach(model, plan, stats=stats_of(model, plan))


def x_of(dtype: torch.dtype) -> Tensor:
    return values(3, 5, WIDTH, name="x", dtype=dtype)


def first_output_is_as_declared(init: Any) -> str:
    """The base's to rounding in three widths, or, where the init declares another start, another one."""
    found = []
    for dtype, tol in TOLERANCE.items():
        model, y = settle(Tiny(), dtype), settle(Tiny(), dtype)(x_of(dtype))
        plan = plan_of(init)
        attach(model, plan, stats=stats_of(model, plan))
        now = model(x_of(dtype))
        must(now.dtype == dtype, f"the output has become {now.dtype}")
        found.append(gap(now, y))
        if init.start == "identity":
            must(found[-1] <= tol, f"{dtype}: relative difference {found[-1]:.2e} > {tol:.0e}")
        elif dtype != BF16:
            must(found[-1] > tol, f"{dtype}: declared {init.start!r}, and the first output is the base's")
    return f"{found[0]:.1e} in float64, {found[2]:.1e} in bfloat16"


def base_is_untouched(init: Any) -> str:
    """Probe, attach, a training step, detach: not a bit of the base, a flag or the mode has changed."""
    for dtype in (F64, BF16):
        model, plan = settle(Tiny(), dtype), plan_of(init)
        model.blocks[0].sq.weight.requires_grad_(False)
        flags = {n: p.requires_grad for n, p in model.named_parameters()}
        bits, y = digest(base_state(model)), model(x_of(dtype))
        stats = stats_of(model, plan)
        must(digest(base_state(model)) == bits and not model.training, "the probe has changed the model")
        must(
            {n: p.requires_grad for n, p in model.named_parameters()} == flags, "the probe has changed what is trained"
        )
        must(all(p.grad is None for p in model.parameters()), "the probe left gradients behind")
        must(not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules()), "the probe left hooks behind")
        adapted = attach(model, plan, stats=stats)
        optimizer = adapted.optimizer(1e-2, steps=100)
        loss_of(model, x_of(dtype)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        must(digest(base_state(model)) == bits, "the base's weights have changed")
        adapted.detach()
        same("the model after detach", model(x_of(dtype)), y)
    return "float64 and bfloat16"


def every_factor_learns(init: Any) -> str:
    """After two steps every trained tensor is another one, and every constant the same."""
    model, adapted = started(init)
    before = {k: t.clone() for k, t in adapted.state().items()}
    optimizer = adapted.optimizer(lr=1e-2, steps=100)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model, x_of(F64)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for name, t in adapted.state().items():
        must(torch.equal(t, before[name]) != t.requires_grad, f"{name}: trained {t.requires_grad}, moved the other way")
    return f"{len(before)} tensors"


def export_is_exact(init: Any) -> str:
    """A plain LoRA for the original base: of rank r, or of rank 2 r where a constant was moved into it."""
    model, adapted = started(init)
    push(adapted)
    if init.structure:
        raise NotApplicable(f"the change of {init.structure} has no low-rank factors")
    want, out = model(x_of(F64)).detach(), adapted.to_lora()
    must(set(out.error.values()) == {0.0}, f"the export has errors {out.error}")
    for a in adapted.assignments:
        r = getattr(a.method, "r")  # noqa: B009
        got = out.factors[a.site.name][0].shape[1]
        must(got == (2 * r if init.shifts else r), f"{a.site.name}: rank {got} at r = {r}")
    adapted.detach()
    with torch.no_grad():
        for name, (B, A) in out.factors.items():
            model.get_submodule(name).weight += B @ A
    close("the base with the factors added", model(x_of(F64)), want, 1e-12)
    return f"rank {out.rank}"


def saved_and_loaded_without_stats(init: Any) -> str:
    """Every tensor and every rank comes back bit for bit, with nothing measured and nothing shifted again."""
    model, adapted = started(init, F32)
    push(adapted)
    with tempfile.TemporaryDirectory() as folder:
        adapted.save(f"{folder}/a")
        again = settle(Tiny(), F32)
        loaded = load(again, f"{folder}/a")
    mine, theirs = adapted.state(), loaded.state()
    must(set(mine) == set(theirs), "other tensors came back")
    for name, t in mine.items():
        same(name, theirs[name], t)
    same("the output", again(x_of(F32)), model(x_of(F32)))
    must(
        Plan.from_dict(json.loads(json.dumps(adapted.plan.to_dict()))) == adapted.plan, "the plan does not survive JSON"
    )
    return f"{len(mine)} tensors"


def start_is_deterministic(init: Any) -> str:
    """The same bits again, whatever torch's own generator does; other draws for another seed do not matter here."""
    torch.manual_seed(1)
    _, one = started(init)
    torch.manual_seed(2)
    _, two = started(init)
    for name, t in one.state().items():
        same(name, two.state()[name], t)
    return f"{len(one.state())} tensors"


def unmeasured_is_refused(init: Any) -> str:
    """Without what it needs: an error that says how to get it, and nothing attached."""
    if not measured(init):
        raise NotApplicable("it looks at the weights only")
    model = settle(Tiny(), F64)
    keys = list(model.state_dict())
    try:
        attach(model, plan_of(init))
    except SpecError as error:
        must("deltaw.probe" in str(error), f"the error does not say what to do: {error}")
        must(list(model.state_dict()) == keys, "something was attached all the same")
        return str(error)[:60]
    raise SpecError("it was attached without what it needs")


LAWS: dict[str, Callable[[Any], str]] = {
    f.__name__: f
    for f in (
        first_output_is_as_declared, base_is_untouched, every_factor_learns, export_is_exact, saved_and_loaded_without_stats,
        start_is_deterministic, unmeasured_is_refused,
    )
}  # fmt: skip


def compare_closed(init: Any) -> str:
    """B, A (up to the sign of each pair) and the constant on a wide and a tall weight, in float64; or what a closed form has of its
    own, check(init)."""
    judge = closed("init", init.key)
    assert judge is not None
    if hasattr(judge, "check"):
        return str(judge.check(init))
    r, s = 3, 2.0
    for m, n in ((24, 16), (12, 18)):
        model = settle(One(m, n), F64)
        W, stats = model.blocks[0].weight.detach(), known(m, n, model.blocks[0].weight.detach())
        with torch.no_grad():  # ranks have tests of their own
            plan = plan_of(init, r, r * s, targets=["blocks.0"])
            plan = Plan(plan.method, targets=["blocks.0"], init=Fixed(init))
            entry = attach(model, plan, stats=Stats({"blocks.0": stats})).entries()["blocks.0"]
        got = dict(entry.named())
        if judge.__dict__.get("DRAWN"):  # A stays as the method has drawn it
            stats = {**stats, "A": got["A"].detach().clone()}
        B, A, offset = judge.closed(init, W, stats, r, s)
        mine = got["B"].detach() @ got["R"].detach() * s if "R" in got else got["B"].detach()
        sign = torch.where((got["A"].detach() * A).sum(1) < 0, -1.0, 1.0).to(A)
        close(f"{m} x {n}: A", got["A"].detach(), A * sign[:, None], 1e-8)
        close(f"{m} x {n}: B", mine, B * sign, 1e-8)
        must(
            (offset is None) == ("offset.B" not in got),
            "one of the two moves a constant into the base, the other does not",
        )
        if offset is not None:
            close(f"{m} x {n}: constant", got["offset.B"] @ got["offset.A"], offset, 1e-8)
    return "closed form, wide and tall"


class Fixed:
    """An init without its ranks: the same start at the ranks of the plan."""

    def __init__(self, init: Any):
        self.init, self.key, self.needs, self.shifts, self.fills = init, init.key, init.needs, init.shifts, init.fills

    def fill(self, *args: Any) -> Any:
        return self.init.fill(*args)


def known(m: int, n: int, W: Tensor) -> dict[str, Tensor]:
    """Statistics of a site made up from formulas; "rows" are the tokens behind those of inputs."""
    spread = torch.logspace(0, -1, n, dtype=F64)
    X = values(40, n, name="rows") * spread + 0.3
    pca = IncrementalPCA(n)  # nothing is cut off, so that parts are the whole
    for part in torch.split(X, 20):
        pca.add(part)
    assert pca.components is not None
    return {
        "gradient": values(m, n, name="G") * spread, "inputs": X.mT @ X / len(X), "inputs_by_max": X.mT @ X / X.max() ** 2,
        "components": pca.components, "singular": pca.singular, "share": pca.share,
        "original": W + values(m, n, name="lost", std=0.1), "rows": X, "fisher": values(m, n, name="F").square(),
    }  # fmt: skip
