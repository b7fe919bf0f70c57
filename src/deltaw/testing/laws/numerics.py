"""Laws of the forward and backward pass: the start, dtypes, gradients, what is computed and how."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ...catalogue import facts_of
from ...errors import SpecError
from ...fused import walking
from ...ops import watch_dense
from ..tiny import WIDE, WIDTH, coded, values
from .base import BF16, F32, F64, Case, NotApplicable, close, gap, law, must, push, same


@law(F64, F32, BF16)
def starts_as_declared(case: Case) -> str | None:
    """identity: the first output is the base's, bit for bit; rounding: up to rounding; none: it differs, and by how much."""
    model, x = case.tiny(), case.x()
    before = model(x)
    case.attach(model, move=False)
    after, declared = model(x), case.method.start
    if declared == "identity":
        same("first output", after, before)
        return None
    off = gap(after, before)
    if declared == "rounding":
        limit = {F64: 1e-10, F32: 1e-5, BF16: 3e-2}[case.dtype]
        must(off <= limit, f"declared identity up to rounding; the first output is off by {off:.2e}")
        return f"off by {off:.1e}"
    must(declared.startswith("none: "), f"start must be 'identity', 'rounding' or 'none: WHY'; found {declared!r}")
    must(off > 0 or case.dtype is BF16, "declared 'none', yet the first output is the base's: declare it 'identity'")
    must(off < float("inf"), "the first output is not finite")
    return f"off by {off:.2g} ({declared[6:]})"


@law(F64, F32, BF16)
def dtype_passes_through(case: Case) -> None:
    """The output, and the gradient of the input, have the input's dtype; adapters are stored in float32 at least."""
    model = case.tiny()
    adapted = case.attach(model)
    x = case.x().requires_grad_()
    y = model(x)
    must(y.dtype == case.dtype, f"output {y.dtype}")
    y.sum().backward()
    must(x.grad is not None and x.grad.dtype == case.dtype, "gradient of the input")
    must(bool(y.isfinite().all()) and bool(x.grad.isfinite().all()), "not finite")  # type: ignore[union-attr]
    for name, p in adapted.trainable().items():
        must(p.dtype == torch.promote_types(case.dtype, F32), f"{name} is stored in {p.dtype}")


@law(BF16)
def half_precision_is_close(case: Case) -> str:
    """bfloat16 gives the float64 result up to bfloat16's rounding."""
    exact = Case(case.method, F64)
    wide, narrow = exact.tiny(), case.tiny()
    ours, theirs = case.attach(narrow), exact.attach(wide).state()
    with torch.no_grad():  # a start that looks at W may choose other positions in the rounded W
        for name, t in ours.state().items():
            t.copy_(theirs[name])
    off = gap(narrow(case.x()), wide(exact.x()))
    must(off < 0.08, f"relative difference {off:.2g}")
    return f"off by {off:.1g}"


@law(F32)
def autocast_is_close(case: Case) -> str:
    """Under autocast (what mixed-precision training runs in) the output has the dtype that the base's has there, stays
    close to the full-precision one, and the gradients of the float32 masters are finite."""
    model, x = case.tiny(), case.x()
    with torch.autocast("cpu", torch.bfloat16):
        kind = model(x).dtype
    adapted = case.attach(model)
    exact = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
        loss = y.float().square().sum()
    must(y.dtype == kind, f"the base gives {kind} under autocast, the adapted model {y.dtype}")
    off = gap(y, exact)
    must(off < 0.08, f"relative difference {off:.2g}")
    loss.backward()
    for name, g in _gradients(adapted).items():
        must(g.dtype == F32 and bool(g.isfinite().all()), f"{name}: its gradient is {g.dtype} or not finite")
    return f"off by {off:.1g}"


def _loss(model: nn.Module, x: Tensor) -> Tensor:
    y = model(x)
    return (y * values(*y.shape[1:], name="w", dtype=y.dtype)).sum(tuple(range(1, y.dim()))).mean()


def _gradients(adapted: Any) -> dict[str, Tensor]:
    out = {}
    for name, p in adapted.trainable().items():
        must(p.grad is not None, f"{name} got no gradient")
        out[name] = p.grad.clone()
        p.grad = None
    return out


@law(F64, F32)
def gradients_reach_what_is_trained(case: Case) -> None:
    """After one push off the start every trained tensor has a finite, non-zero gradient; nothing frozen has one."""
    model = case.tiny()
    adapted = case.attach(model)
    _loss(model, case.x()).backward()
    trained = adapted.trainable()
    for name, t in model.named_parameters():
        if not any(t is p for p in trained.values()):
            must(not t.requires_grad and t.grad is None, f"{name} is frozen, yet takes part in training")
    for name, g in _gradients(adapted).items():
        must(bool(g.isfinite().all()), f"{name} has a gradient that is not finite")
        must(float(g.abs().max()) > 0, f"{name} has a zero gradient")


@law()
def gradient_is_the_derivative(case: Case) -> None:
    """The directional derivative of the loss by central differences is the gradient at the input."""
    model, x = case.tiny(), case.x()
    adapted = case.attach(model)
    x.requires_grad_()
    _loss(model, x).backward()
    assert x.grad is not None
    d, h = case.x(name="d"), 1e-5
    with torch.no_grad():
        slope = (_loss(model, x + h * d) - _loss(model, x - h * d)) / (2 * h)
    if any("hidden" in e.signals.values() for e in adapted.entries().values()):
        raise NotApplicable("the signal comes from a first pass without gradient, by definition of the method")
    close("input", (x.grad * d).sum(), slope, 1e-6)


@law()
def checkpointing_changes_nothing(case: Case) -> str | None:
    """Recomputing activations in the backward pass gives the same gradients, in training mode, in both variants; what
    cannot is refused by name."""
    found, refused = {}, {}
    for way in ("", "plain", "reentrant"):
        model = case.tiny()
        adapted = case.attach(model)
        model.recompute = way
        model.train()
        torch.manual_seed(0)
        with warnings.catch_warnings():  # a first pass for signals has no gradient, which reentrant checkpoints mention
            warnings.simplefilter("ignore", UserWarning)
            try:
                _loss(model, case.x().requires_grad_()).backward()
            except SpecError as refusal:  # by name, instead of gradients of something else
                must(bool(way) and case.method.sites in ("prefix", "block"), f"{way or 'without checkpoints'}: {refusal}")
                refused[way] = str(refusal)
                continue
        found[way] = _gradients(adapted)
    for way in set(found) - {""}:
        for name, g in found[way].items():
            close(f"{way} {name}", g, found[""][name], 1e-12)
    if len(refused) == 2:
        raise NotApplicable(f"refused: {refused['plain']}")
    return "; ".join(f"{way} refused: {why}" for way, why in refused.items()) or None


@law()
def fused_is_the_walk(case: Case) -> str:
    """The fused paths and the walk node by node: the same output, input gradient and gradients, for few tokens and for
    many (the choice of a path depends on it), in evaluation and, with the same draws, in training."""
    model = case.tiny()
    adapted = case.attach(model)
    paths = 0
    for tokens in (1, 5, 200):
        for mode in (False, True):
            model.train(mode)
            found = []
            for plain in (False, True):
                x = case.x(2, tokens, 16).requires_grad_()
                torch.manual_seed(tokens)
                with walking() if plain else nullcontext():
                    y = model(x)
                    y.square().sum().backward()
                found.append({"output": y.detach(), "input": x.grad, **_gradients(adapted)})
            for name, t in found[0].items():
                close(f"{tokens} tokens, {name}", t, found[1][name], 1e-10)
            paths += any(not torch.equal(t, found[1][name]) for name, t in found[0].items())
    return f"rounded differently in {paths} of 6 runs"


@law()
def accumulation_is_one_batch(case: Case) -> None:
    """Two half batches, each weighted by half, give the gradients of the whole batch."""
    model, x = case.tiny(), case.x(4, 5, 16)
    adapted = case.attach(model)
    _loss(model, x).backward()
    whole = _gradients(adapted)
    for half in x.split(2):
        (_loss(model, half) / 2).backward()
    for name, g in _gradients(adapted).items():
        close(name, g, whole[name], 1e-9)


@law(F32)
def base_stays_opaque(case: Case) -> str:
    """Over a foreign (coded) base layer a forward and backward asks for the dense weight only if the catalogue says so."""
    if case.method.sites != "weight":
        raise NotApplicable(f"acts on a {case.method.sites}: there is no base weight in its formula")
    model = coded(case.tiny())
    adapted = case.attach(model)
    declared = facts_of(case.method, (WIDE, WIDTH))["needs_dense_base"]
    with watch_dense() as asked:
        for tokens in (1, 5, 200):
            _loss(model, case.x(2, tokens, 16)).backward()
        model.train()
        _loss(model, case.x(2, 3, 16)).backward()
    must(len(_gradients(adapted)) > 0, "nothing is trained")
    must(bool(asked) == declared, f"dense() was called {len(asked)} times; declared: {declared}")
    return f"dense base {'needed, as declared' if declared else 'not needed'}"


@law()
def compiled_is_eager(case: Case) -> None:
    """torch.compile makes one graph of it, forward and backward, with the same numbers."""
    x = case.x()
    plain, model = case.tiny(), case.tiny()
    a, b = case.attach(plain), case.attach(model)
    torch._dynamo.reset()  # type: ignore[no-untyped-call]
    fast = torch.compile(model, fullgraph=True, backend="eager")
    try:
        close("output", fast(x), plain(x), 1e-12)
        _loss(fast, x).backward()
    except Exception as error:
        if type(error).__module__.startswith("torch._dynamo"):
            must(False, "does not trace as one graph: " + str(error).strip().split("\n")[0])
        raise
    _loss(plain, x).backward()
    want = _gradients(a)
    for name, g in _gradients(b).items():
        close(name, g, want[name], 1e-10)
    push(b)
    push(a)
    close("output after a step", fast(x), plain(x), 1e-12)
