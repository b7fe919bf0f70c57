"""Another rank for an adapter that is there: the best one below (LoRA-Squeeze), or the same function above."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .attach import Adapted, attach
from .convert import Converted, Pair, to_lora
from .errors import SpecError
from .lowrank import core_svd
from .methods.rank.budgets import bytes_of
from .plan import Plan
from .spec import METHODS, Start, kaiming, scale_of


@dataclass
class Squeezed:
    """site -> (B, A) with all scales in B; what was lost at each site and in all, as a share of |dW|_F."""

    factors: dict[str, Pair]
    errors: dict[str, float]
    error: float
    ranks: dict[str, int]
    source: Adapted

    def save(self, directory: Any) -> Any:
        """A plain LoRA as every reader knows it."""
        return Converted({s: p for s, p in self.factors.items() if self.ranks[s]}, self.errors, self.source).save(directory)

    def attach(self) -> Adapted:
        """In the place of the source, which is detached: a LoRA to be trained on, with the source's scale s where it was a LoRA, else 1.

        Terms that are there only to be learned (a rank above that of the update) have a random row of A and a zero column of B."""
        old, model, name = self.source, self.source.model, self.source.name
        scale = {a.site.name: scale_of(a.method) or 1.0 for a in old.assignments}
        seed = old.plan.seed
        made = {s: METHODS["lora"](r=r, alpha=scale[s] * r) for s, r in self.ranks.items() if r}  # type: ignore[call-arg]
        if not made:
            raise SpecError("nothing is left at any site: allow a larger rank, error or budget")
        old.detach()
        plan = Plan(
            next(iter(made.values())), targets="|".join(map(re.escape, made)), overrides={r"\A" + re.escape(s): m for s, m in made.items()},
            update=old.plan.update, seed=seed, tie=old.plan.tie,
        )  # fmt: skip
        new = attach(model, plan, name)
        with torch.no_grad():
            for site, entry in new.entries().items():
                B, A = self.factors[site]
                entry.get("B").copy_(B / scale[site] ** 0.5 if B.any() else B)
                entry.get("A").copy_(torch.where((B != 0).any(0)[:, None], A / scale[site] ** 0.5, A))
        return new


@torch.no_grad()
def squeeze(
    adapted: Adapted,
    rank: int | None = None,
    error: float | None = None,
    budget: int | str | None = None,
    ranks: dict[str, int] | None = None,
) -> Squeezed:
    """The nearest LoRA of other ranks. Exactly one of:

    rank: the same everywhere (above the update's own rank it grows: same function, further terms to learn). error: the fewest numbers
    with |dW' - dW|_F <= error |dW|_F over all sites together. budget: the least error with at most so many bytes ("2MB", or a
    number) in float32. ranks: site -> rank. For error and budget a direction counts by its sigma² per number it costs (m + n), over
    all sites at once, so a site may lose its adapter. dW = Q_B (R_B R_Aᵀ) Q_Aᵀ by two QRs and an SVD of the r x r core in float32
    at least; B' = U sqrt(S), A' = sqrt(S) Vᵀ. error of the result² = sum of the sigma² that were dropped / sum of all.
    Source: LoRA-Squeeze (arXiv:2602.10993); the global choice is ours.
    Errors: NotMergeable for an adapter without exact factors, SpecError for other arguments.
    """
    given = [k for k, v in {"rank": rank, "error": error, "budget": budget, "ranks": ranks}.items() if v is not None]
    if len(given) != 1:
        raise SpecError(f"squeeze by exactly one of rank, error, budget, ranks; found {', '.join(given) or 'none'}")
    if error is not None and not 0 <= error < 1:
        raise SpecError(f"an error is a share of |dW| in [0, 1); found {error}")
    if rank is not None and rank < 1:
        raise SpecError(f"a rank is at least 1; found {rank}")
    pairs = to_lora(adapted).factors
    spectra = {site: core_svd(*pair) for site, pair in pairs.items()}
    if ranks is not None and (odd := sorted(set(ranks) - set(pairs))):
        raise SpecError(f"'{odd[0]}' is no site of this adapter")
    wanted = ranks if ranks is not None else dict.fromkeys(pairs, rank) if rank is not None else chosen(spectra, error, budget)
    whole = sum(float(S.double().square().sum()) for _, S, _ in spectra.values())
    out, errors, lost = dict[str, Pair](), dict[str, float](), 0.0
    for site, (U, S, V) in spectra.items():
        k = int(wanted.get(site, pairs[site][0].shape[1]))
        if not 0 <= k <= min(U.shape[0], V.shape[1]):
            raise SpecError(f"{site}: a rank from 0 to {min(U.shape[0], V.shape[1])} was expected; found {k}")
        square = S.double().square()
        tail, all_ = float(square[k:].sum()), float(square.sum())
        lost += tail
        errors[site] = (tail / all_) ** 0.5 if all_ else 0.0
        out[site] = grown(truncated(U, S, V, k), k, site, adapted.plan.seed)
    return Squeezed(out, errors, (lost / whole) ** 0.5 if whole else 0.0, {s: B.shape[1] for s, (B, _) in out.items()}, adapted)


def truncated(U: Tensor, S: Tensor, V: Tensor, k: int) -> Pair:
    """(U sqrt(S), sqrt(S) V) of the k largest; directions of no size are left out."""
    k = min(k, int((S > S[:1] * 1e-7).sum()) if S.numel() and S[0] > 0 else 0)
    root = S[:k].sqrt()
    return U[:, :k] * root, root[:, None] * V[:k]


def grown(pair: Pair, k: int, site: str, seed: int) -> Pair:
    """The same product with k terms: columns of zeros in B, random rows in A, as LoRA starts."""
    B, A = pair
    more = k - B.shape[1]
    if more <= 0:
        return pair
    start = Start(site, "linear", None, seed).at("grown", None)  # type: ignore[arg-type]
    return torch.cat([B, B.new_zeros(len(B), more)], 1), torch.cat([A, kaiming(start, (more, A.shape[1])).to(A)])


def chosen(spectra: dict[str, tuple[Tensor, Tensor, Tensor]], error: float | None, budget: int | str | None) -> dict[str, int]:
    """site -> rank: directions of all sites in the order of sigma² per number, until the error or the budget is met."""
    order = []
    for site, (U, S, V) in spectra.items():
        cost = U.shape[0] + V.shape[1]
        order += [(-float(s) ** 2 / cost, site, k, float(s) ** 2, cost) for k, s in enumerate(S.double())]
    order.sort()
    ranks, spent = dict.fromkeys(spectra, 0), 0
    left = sum(o[3] for o in order)
    allowed = (error or 0.0) ** 2 * left * (1 + 1e-12)
    most = None if budget is None else bytes_of(budget) // 4
    for _, site, k, square, cost in order:
        if error is not None and left <= allowed:
            break
        if most is not None and spent + cost > most:
            continue
        if k == ranks[site]:  # in order within a site: a larger one was too dear
            ranks[site], spent, left = k + 1, spent + cost, left - square
    if most is not None and not any(ranks.values()):
        raise SpecError(f"a budget of {budget} does not pay for one direction anywhere: at least {4 * min(o[4] for o in order)} bytes are needed")
    return ranks
