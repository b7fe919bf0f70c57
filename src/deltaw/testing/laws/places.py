"""Laws of where a delta can go: one formula, every kind of weight."""

from __future__ import annotations

import torch

import deltaw

from ...errors import DeltawError, NotLinear, NotMergeable, SpecError
from ...plan import Plan
from ..tiny import Lookup, Tied, places, settle
from .base import Case, NotApplicable, close, gap, law, must, push, same


@law()
def works_wherever_a_weight_is(case: Case) -> str:
    """On every kind of layer the adapted model equals the one with the merged weight, with a gradient for every tensor;
    or the layer is refused with a typed error that leaves the model alone."""
    if case.method.sites != "weight":
        raise NotApplicable(f"acts on a {case.method.sites}, not on weights of different layouts")
    notes = []
    for kind, (model, targets) in places().items():
        model = settle(model, case.dtype)
        x = torch.arange(12).reshape(4, 3) if isinstance(model, (Lookup, Tied)) else case.x(4, 3, 16)
        keys, base = list(model.state_dict()), model(x)
        try:
            adapted = deltaw.attach(model, Plan(case.method, targets=targets))
        except SpecError as refusal:
            must(keys == list(model.state_dict()), f"{kind}: refused, but the model has changed")
            must(bool(str(refusal)), f"{kind}: refused without a word")
            notes.append(f"{kind} refused ({type(refusal).__name__})")
            continue
        push(adapted)
        try:
            y = model(x)
        except DeltawError as refusal:  # only the call shows that a map is not linear enough for this kind
            must(bool(str(refusal)), f"{kind}: refused without a word")
            notes.append(f"{kind} refused when called ({type(refusal).__name__})")
            adapted.detach()
            same(f"{kind}, detached", model(x), base)
            continue
        must(gap(y.detach(), base.detach()) > 0, f"{kind}: the adapter has no effect")
        y.square().sum().backward()
        for name, p in adapted.trainable().items():
            must(p.grad is not None and bool(p.grad.any()), f"{kind}: {name} got no gradient")
        try:
            merged = adapted.merge(probe=x).model()
        except NotMergeable:
            notes.append(f"{kind} works, does not merge")
        else:
            close(f"{kind}, merged", merged(x), y, case.tol)
        adapted.detach()
        same(f"{kind}, detached", model(x), base)
    return "; ".join(notes) or "every kind works and merges"


@law()
def exports_where_it_is_exact(case: Case) -> str:
    """Where there are exact factors, a plain LoRA made of them gives the same outputs; where not, a cut reports its error."""
    model, x = case.tiny(), case.x()
    adapted = case.attach(model)
    y = model(x).detach()
    try:
        lora = adapted.to_lora()
    except (NotLinear, NotMergeable) as refusal:
        try:
            cut = adapted.to_lora(rank=2)
        except DeltawError:
            raise NotApplicable(str(refusal)) from refusal
        must(all(0 < e <= 1 for e in cut.error.values()), f"errors of a cut at rank 2: {cut.error}")
        return f"no exact factors; at rank 2 the error is up to {max(cut.error.values()):.2f}"
    if case.method.sites == "module":
        raise NotApplicable("whole modules are exported as they are, not as factors")
    adapted.detach()
    with torch.no_grad():
        for name, (B, A) in lora.factors.items():
            model.get_submodule(name).weight += B @ A
    close("plain LoRA", model(x), y, case.tol)
    return f"exact at rank {lora.rank}"
