"""Allocators: scores, a budget and costs in, a plan out. No tensor of an adapter is touched, ties and orders are settled
the same way everywhere, so that processes which see the same scores decide the same.

Costs are of one term at a site (parameters m + n, FLOPs, bytes), 1 where nothing is said: then a budget is a number of terms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...errors import SpecError, need

Scores = Mapping[str, Tensor]
Ranks = dict[str, int]


def keep_top(scores: Scores, budget: int) -> dict[str, Tensor]:
    """site -> which terms live: those strictly above the (total - budget)-th smallest score of all. Ties at it die, all of them."""
    every = torch.cat([s.flatten() for s in scores.values()])
    drop = len(every) - budget
    if drop <= 0:
        return {k: torch.ones_like(s, dtype=torch.bool) for k, s in scores.items()}
    threshold = every.kthvalue(min(drop, len(every))).values
    return {k: s > threshold for k, s in scores.items()}


def drop_lowest(scores: Scores, count: int) -> dict[str, Tensor]:
    """site -> which terms die: all at or below the count-th smallest score; none for count = 0."""
    if count <= 0:
        return {k: torch.zeros_like(s, dtype=torch.bool) for k, s in scores.items()}
    every = torch.cat([s.flatten() for s in scores.values()])
    threshold = every.kthvalue(min(count, len(every))).values
    return {k: s <= threshold for k, s in scores.items()}


def best(scores: Mapping[str, float], count: int) -> list[str]:
    """The `count` sites of the highest scores; of equals those whose names come first."""
    return sorted(scores, key=lambda k: (-scores[k], k))[: max(count, 0)]


def swap(scores: Scores, count: int, pool: int, least: int = 1) -> tuple[dict[str, list[int]], Ranks]:
    """(site -> terms to drop, site -> terms to add): each site puts its `pool` lowest terms into one pool (and keeps `least`); the
    `count` lowest of the pool go, the owners of the `count` highest of it grow. The total stays."""
    found: list[tuple[float, str, int]] = []
    for name in sorted(scores):
        values = scores[name].tolist()
        order = sorted(range(len(values)), key=lambda i: (values[i], i))
        found += [(values[i], name, i) for i in order[: max(0, min(pool, len(values) - least))]]
    found.sort()
    count = min(count, len(found))
    drop: dict[str, list[int]] = {}
    for _, name, i in found[:count]:
        drop.setdefault(name, []).append(i)
    grow: Ranks = {}
    for _, name, _i in found[len(found) - count :] if count else []:
        grow[name] = grow.get(name, 0) + 1
    return {k: sorted(v) for k, v in drop.items()}, grow


def proportional(
    scores: Mapping[str, float],
    budget: float,
    least: int,
    room: Mapping[str, int],
    costs: Mapping[str, float] | None = None,
) -> Ranks:
    """Terms in proportion to the scores, each site's between `least` and its room, at a total cost <= budget.

    Sites that hit an end stay there and the others share what is left; fractions go to the largest remainders that still fit. A
    budget below the cost of `least` everywhere is a SpecError."""
    cost = {k: 1.0 if costs is None else float(costs[k]) for k in scores}
    if budget + 1e-9 < sum(cost[k] * min(least, room[k]) for k in scores):
        raise SpecError(f"a budget of {budget:g} does not pay for rank {least} at each of {len(scores)} sites")
    lowest = {k: min(least, room[k]) for k in scores}
    fixed: dict[str, float] = {}
    while True:
        free = [k for k in sorted(scores) if k not in fixed]
        left = budget - sum(cost[k] * r for k, r in fixed.items())
        weight = {k: max(float(scores[k]), 0.0) for k in free}
        total = sum(weight.values())
        weight = weight if total > 0 else dict.fromkeys(free, 1.0)
        total = sum(weight.values())
        want = {k: left * weight[k] / total / cost[k] for k in free}
        low = {k: float(lowest[k]) for k in free if want[k] < lowest[k]}
        high = {k: float(room[k]) for k in free if want[k] > room[k]}
        # of the two kinds the one that is further off is settled first: the other may then be none any more
        over = sum((want[k] - room[k]) * cost[k] for k in high) - sum((lowest[k] - want[k]) * cost[k] for k in low)
        settled = high if high and (over >= 0 or not low) else low
        if not settled:
            break
        fixed |= settled
    real = {**fixed, **want}
    ranks = {k: int(real[k] + 1e-9) for k in scores}
    left = budget - sum(cost[k] * r for k, r in ranks.items())
    for k in sorted(scores, key=lambda k: (ranks[k] - real[k], k)):
        if ranks[k] < room[k] and cost[k] <= left + 1e-9:
            ranks[k] += 1
            left -= cost[k]
    return ranks


def linear_depth(first: float, last: float, layers: int) -> list[int]:
    """round(first + (last - first) l / (layers - 1)) for l = 0 .. layers - 1 (halves to even)."""
    return [round(first + (last - first) * k / max(layers - 1, 1)) for k in range(layers)]


def energy(sigma: Tensor, tau: float) -> int:
    """The smallest k for which the k largest singular values hold a share tau of the squares; 0 for a zero matrix."""
    square = sigma.double().square().sort(descending=True).values
    total = square.sum()
    if not total > 0:
        return 0
    return min(int((square.cumsum(0) < tau * total * (1 - 1e-12)).sum()) + 1, len(square))


def per_group_top(scores: Mapping[str, float], groups: Mapping[str, object], count: int) -> list[str]:
    """The `count` best sites of every group (a layer, say), in the order of the scores' keys."""
    chosen: set[str] = set()
    for group in dict.fromkeys(groups.values()):
        chosen |= set(best({k: v for k, v in scores.items() if groups[k] == group}, count))
    return [k for k in scores if k in chosen]


def knapsack(
    damage: Sequence[Sequence[float]], weight: Sequence[Sequence[float]], budget: float, seconds: float = 60.0
) -> list[int]:
    """One option a site, the least sum of damage at a sum of weights <= budget: an integer linear programme, solved by HiGHS through
    scipy. SpecError where even the lightest options weigh more; MissingExtra without scipy."""
    optimize, sparse = need("scipy.optimize", extra="compress"), need("scipy.sparse", extra="compress")
    import numpy

    lightest = sum(min(w) for w in weight)
    if lightest > budget * (1 + 1e-12):
        raise SpecError(f"the lightest options weigh {lightest:g} together; the budget is {budget:g}")
    sizes = [len(d) for d in damage]
    cost = numpy.concatenate([numpy.asarray(d, float) for d in damage])
    heavy = numpy.concatenate([numpy.asarray(w, float) for w in weight])
    scale = float(numpy.abs(cost).max()) or 1.0
    one = sparse.block_diag([numpy.ones((1, n)) for n in sizes])
    found = optimize.milp(
        cost / scale,
        constraints=[optimize.LinearConstraint(one, 1, 1), optimize.LinearConstraint(heavy[None] / max(budget, 1e-300), -numpy.inf, 1.0)],
        integrality=numpy.ones(len(cost)), bounds=optimize.Bounds(0, 1), options={"time_limit": seconds},
    )  # fmt: skip
    if found.x is None:
        raise SpecError(f"the integer programme was not solved: {found.message}")
    chosen, at = [], 0
    for n in sizes:
        chosen.append(int(found.x[at : at + n].argmax()))
        at += n
    return chosen


def cut_list(triples: Sequence[tuple[str, float, float]], fits: object) -> dict[str, float]:
    """site -> ratio, of (site, ratio, damage): sorted by damage, worst first; from a cut on all of them count, and of a site the smallest
    ratio there (1 where none is). The longest such tail for which fits(ratios) is false is one too long: the first that fits is taken by
    bisection, and `fits` has to go from false to true as the tail grows."""
    order = sorted(triples, key=lambda t: (-t[2], t[0], t[1]))
    sites = sorted({t[0] for t in triples})

    def at(cut: int) -> dict[str, float]:
        return {s: min((r for n, r, _ in order[cut:] if n == s), default=1.0) for s in sites}

    low, high = 0, len(order)  # fits at low (everything counts) if at all
    if not fits(at(0)):  # type: ignore[operator]
        raise SpecError(
            "not even the smallest ratio of every site meets the target: offer smaller ones, or ask for less"
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(at(middle)) else (low, middle)  # type: ignore[operator]
    return at(high) if fits(at(high)) else at(low)  # type: ignore[operator]


def whole_share(ratio: float, m: int, n: int) -> int:
    """The rank at which two factors of an m x n weight have `ratio` of its numbers: floor(ratio m n / (m + n)), at least 1."""
    return max(1, math.floor(ratio * m * n / (m + n) + 1e-9))


def floors(weight: Tensor, total: int, room: int) -> list[int]:
    """Whole numbers in proportion to the weights, rounded down, at most `room` each; what is left goes to those with room, the least first."""
    share = weight / weight.sum().clamp(min=1e-300)
    got = [min(int(v), room) for v in (share * total).tolist()]
    left = total - sum(got)
    while left > 0:
        i = min((k for k in range(len(got)) if got[k] < room), key=lambda k: (got[k], k))
        more = min(left, room - got[i], max(1, left // len(got)))
        got[i], left = got[i] + more, left - more
    return got
