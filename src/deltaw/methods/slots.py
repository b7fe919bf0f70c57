"""Edits of the rank-one terms of a site, through the view of a rule: which are gated, kept, added, turned.

What terms a method has it says in `Method.slots`: {tensor: axis}, e.g. {"B": 1, "c": 0, "A": 0}. The vector among them is the gate. The
optimiser's state goes along: chosen with the terms (select), 0 for new ones (append), turned with the basis (rebase).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..errors import SpecError
from ..lowrank import signs
from .init import innermost
from .rank import scores


def factors(view: Any) -> dict[str, Tensor]:
    """The tensors of the terms by name."""
    found = {k: getattr(view.p, k) for k in view.method.slots if k in view.p.names()}
    if not found:
        raise SpecError(f"{view.name}: {view.method.key} has no rank-one terms that a rule could allocate")
    return found


def gate(view: Any) -> str:
    """The name of the gate."""
    found = [k for k, t in factors(view).items() if t.dim() == 1]
    if not found:
        raise SpecError(f"{view.name}: the terms of {view.method.key} have no gates")
    return found[0]


def count(view: Any) -> int:
    name, t = next(iter(factors(view).items()))
    return int(t.shape[view.method.slots[name]])


def silence(view: Any, dead: Tensor) -> None:
    """The gates of these terms are 0; their moments stay, so that the next step may revive them."""
    name = gate(view)
    g = getattr(view.p, name)
    view.set(name, g.masked_fill(dead.to(g.device), 0.0))


def remember(views: list[Any], live: dict[str, Tensor]) -> None:
    """These terms live, and the others' gates are 0 now."""
    for v in views:
        v.s["live"] = live[v.name]
    hold(views)


def hold(views: list[Any]) -> None:
    for v in views:
        silence(v, ~v.s["live"])


def threshold(views: list[Any], by: float, who: str) -> None:
    """The proximal step of `by` times the sum of |gate|; tells, every fiftieth step and at the end, how many are left."""
    for v in views:
        name = gate(v)
        v.set(name, torch.nn.functional.softshrink(getattr(v.p, name).detach(), by))
    if views[0].step % 50 == 0 or views[0].step == views[0].length:
        left = sum(int((getattr(v.p, gate(v)) != 0).sum()) for v in views)
        if left != int(views[0].s["live"]) * 1:
            views[0].tell(f"{who}: {left} of {sum(count(v) for v in views)} terms live")
        views[0].s["live"] = torch.tensor(left)


def select(view: Any, keep: Tensor) -> None:
    """Only these terms are left, in this order (numbers, or one bool a term)."""
    at = keep.nonzero().flatten() if keep.dtype == torch.bool else keep
    for name, t in factors(view).items():
        axis, at = view.method.slots[name], at.to(t.device)
        order = torch.arange(t.numel(), device=t.device).view(t.shape).index_select(axis, at)
        view.set(name, t.detach().index_select(axis, at), order)


def append(view: Any, new: dict[str, Tensor]) -> None:
    """Further terms; the optimiser meets them for the first time."""
    for name, t in factors(view).items():
        axis = view.method.slots[name]
        born = new[name].to(t)
        order = torch.arange(t.numel(), device=t.device).view(t.shape)
        order = torch.cat([order, torch.full(born.shape, -1, dtype=order.dtype, device=t.device)], axis)
        view.set(name, torch.cat([t.detach(), born], axis), order)


def orthogonal_to(rows: Tensor, random: Tensor) -> Tensor:
    """Unit rows, as many as in `random`, orthogonal to `rows` and to each other (as far as the space has room)."""
    if not len(random):
        return random
    Q = torch.linalg.qr(torch.cat([rows.double(), random.double()]).mT)[0].mT
    return Q[len(rows) :].to(random) if len(Q) == len(rows) + len(random) else torch.nn.functional.normalize(random, dim=1)


def exchange(view: Any, keep: list[int], count: int) -> None:
    """Only the terms in `keep` are left, and `count` are added: vectors orthogonal to the others of the site, of length 1, with a
    gate of at most 1e-13. The memory of sensitivities goes along."""
    least = min(1e-13, float(getattr(view.p, gate(view)).detach().abs().min()))
    at = torch.tensor(keep, dtype=torch.long)
    select(view, at)
    born = {}
    for name, t in factors(view).items():
        axis = view.method.slots[name]
        if t.dim() == 1:
            born[name] = t.new_full((count,), least)
        else:
            rows = t.detach() if axis == 0 else t.detach().mT
            new = orthogonal_to(rows, view.draw(f"birth.{name}").normal((count, rows.shape[1]), 1.0).to(t))
            born[name] = new if axis == 0 else new.mT
        for w in "IU":
            old = view.s[f"{w}.{name}"].index_select(axis, at.to(t.device))
            view.s[f"{w}.{name}"] = torch.cat([old, torch.zeros_like(born[name])], axis)
    if count:
        append(view, born)


def adopt(view: Any, R: float, q: int) -> None:
    """The reserve (B_r, c_r, A_r) joins the terms and a fresh one is drawn; what s loses as R becomes R + q, the old columns of B gain."""
    p, gain = view.p, (R + q + 1e-5) / (R + 1e-5)
    view.turn("B", p.B.detach() * gain, lambda m: m / gain, lambda v: v / gain**2)
    append(view, {"B": p.B_r.detach() * gain, "c": p.c_r.detach(), "A": p.A_r.detach()})
    for name in ("B_r", "A_r"):
        t = getattr(p, name)
        view.set(name, view.draw(f"reserve.{name}").normal(tuple(t.shape), 0.02), restart=True)
    view.set("R", p.R + q)


def rebase(view: Any, up: str, down: str, R: Tensor, L: Tensor, rho: float = 1.0) -> None:
    """B <- B R, A <- L A (B = `up`, A = `down`), where the scale becomes rho times what it was. First moments follow as
    gradients do, exactly: m_B <- rho m_B Lᵀ, m_A <- rho Rᵀ m_A; second ones by their diagonal: v_B <- rho² v_B (L∘L)ᵀ, v_A <- rho² (R∘R)ᵀ v_A."""
    B, A = getattr(view.p, up), getattr(view.p, down)
    R, L = R.to(B), L.to(A)
    view.turn(up, B.detach() @ R, lambda m: rho * m @ L.mT, lambda v: rho**2 * v @ (L * L).mT)
    view.turn(down, L @ A.detach(), lambda m: rho * R.mT @ m, lambda v: rho**2 * (R * R).mT @ v)


def squeeze(view: Any, k: int, turn: bool) -> Tensor:
    """The nearest s B A of rank k under the same s, in place; the singular values of what it was."""
    B, A, s = view.factors()
    B, A, r = B.detach().double(), A.detach().double(), A.shape[0]
    (Qb, Rb), (Qa, Ra) = torch.linalg.qr(B), torch.linalg.qr(A.mT)
    U, S, V = torch.linalg.svd(s * Rb @ Ra.mT, full_matrices=False)
    sign, root = signs(U[:, :k]), (S[:k] / s).sqrt()
    up, down = U[:, :k] * sign * root, (sign * root)[:, None] * V[:k]
    spare = k - up.shape[1]  # a rank that a small weight does not have: terms of no size
    up, down, S = torch.nn.functional.pad(up, (0, spare)), torch.nn.functional.pad(down, (0, 0, 0, spare)), torch.nn.functional.pad(S, (0, spare))
    if turn:
        rebase(view, "B", "A", torch.linalg.lstsq(Rb, up).solution, torch.linalg.lstsq(Ra, down.mT).solution.mT)
    else:
        rows = torch.where((S[:k] > S[0] * 1e-7)[:, None], down @ Qa.mT, A[:k])
        view.set("B", Qb @ up, restart=True)
        view.set("A", rows, restart=True)
    view.become(r=k, alpha=getattr(innermost(view.method), "alpha", k) * k / r)
    return S.double()


def orthonormality(pairs: Iterable[tuple[Tensor, int]]) -> Tensor:
    """The mean over all factors of the Frobenius norm (not squared) of their Gram matrix minus I; the axis is that of the terms."""
    found = []
    for t, axis in pairs:
        rows = t if axis == 0 else t.mT
        found.append(torch.linalg.matrix_norm(rows @ rows.mT - torch.eye(len(rows), dtype=t.dtype, device=t.device)))
    return torch.stack(found).mean()


def remembered(view: Any) -> dict[str, Tensor]:
    """Memory for the sensitivity of every number: its running mean I and how much that varies, U."""
    return {f"{w}.{k}": torch.zeros_like(t.detach()) for w in "IU" for k, t in factors(view).items()}


def listen(views: list[Any], beta1: float, beta2: float) -> None:
    """Take the sensitivities of this step into the memory."""
    for v in views:
        for k, t in factors(v).items():
            scores.smooth(v.s[f"I.{k}"], v.s[f"U.{k}"], scores.sensitivity(t), beta1, beta2)


def sensitive(views: list[Any]) -> dict[str, Tensor]:
    """Site -> the scores of its terms: I U of the gate plus the means of I U over its vectors."""
    return {v.name: scores.of_terms({k: v.s[f"I.{k}"] * v.s[f"U.{k}"] for k in factors(v)}, v.method.slots) for v in views}


def orthogonalise(views: list[Any], weight: float) -> None:
    """The gradient of weight times `orthonormality` of all factors of all sites."""
    pairs = [(t, v.method.slots[k]) for v in views for k, t in factors(v).items() if t.dim() == 2]
    if weight:
        penalise([t for t, _ in pairs], lambda free: weight * orthonormality(zip(free, [axis for _, axis in pairs])))


def penalise(tensors: list[Tensor], loss: Callable[[list[Tensor]], Tensor]) -> None:
    """Add the gradient of loss(tensors) to theirs: once a step, the same as the term in the loss of every micro-batch of a mean. It comes
    after the clipping of gradients."""
    with torch.enable_grad():
        free = [t.detach().requires_grad_() for t in tensors]
        for t, g in zip(tensors, torch.autograd.grad(loss(free), free, allow_unused=True), strict=True):
            if g is not None:
                t.grad = g.detach() if t.grad is None else t.grad + g.detach()
