"""The projection on balls by hand, after plain steps of gradient descent."""

from __future__ import annotations

import torch

from .... import attach
from ....methods.prefix.cpt import CPT
from ....methods.update.sgd import SGD
from ....plan import Plan
from ...laws.base import Case, close, must
from ...tiny import WIDTH, Tiny, values

RATE, STEPS = 0.05, 8


def check() -> str:
    case = Case(CPT(ids=(3, 1, 4, 2), types=(1, 2, 3, 4), eps=0.2, eps_format=0.05))
    model = case.tiny().train()
    plan = case.plan(Tiny(), update=SGD())
    adapted = attach(model, Plan.from_dict(plan.to_dict()))
    optimizer = adapted.optimizer(RATE)
    (entry,) = adapted.entries().values()
    most, D, shortened = entry.get("e").tolist(), entry.get("D").detach().clone(), 0
    for step in range(STEPS):
        optimizer.zero_grad()
        (model(values(8, 3, WIDTH, name=f"x{step}")) - 3).square().sum().backward()
        grad = entry.get("D").grad.clone()
        optimizer.step()
        D = D - RATE * grad
        for i, e in enumerate(most):
            length = sum(v * v for v in D[i].tolist()) ** 0.5
            if length > e:
                D[i], shortened = D[i] * (e / length), shortened + 1
        close(f"D after step {step}", entry.get("D"), D, 1e-9)
    must(0 < shortened and len({round(e, 9) for e in most}) == 3 and torch.equal(D[3], 0 * D[3]), f"{shortened} rows were shortened, of lengths {most}")
    return f"{STEPS} steps, {shortened} rows shortened"
