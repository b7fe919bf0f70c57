"""RankAdaptor: a small network learns from measured configurations which ranks to try next."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ...errors import SpecError
from . import ranks
from .surrogate import candidates, predict

Config = dict[str, int]


@ranks(paper="arXiv:2406.15734")
class RankAdaptor:
    """search(measure, sites, costs, budget): `first` random feasible configurations are measured; then `rounds` times an MLP (ranks / the
    largest -> 32 -> 32 -> 32 -> 1, ReLU; Adam 1e-2, 200 steps, squared error) is fitted to all that was measured, and the unseen one of `sampled`
    random feasible configurations that it likes best is measured. The best measured one wins. A configuration gives every site (or
    group of sites) one of `choices`, at a cost sum r c <= budget. measure(config) -> score, higher is better: train with these ranks and score.

    Source: Zhou et al. 2025, through a re-implementation in public that may not be the authors' (three layers of 32, 8 + 8 measurements, 64
    candidates). Trap: measured scores are noisy; nothing is enumerated, 8^32 configurations are too many.
    """

    choices: tuple[int, ...] = (2, 4, 6, 8, 10, 12, 14, 16)
    first: int = 8
    rounds: int = 8
    sampled: int = 64
    seed: int = 0

    def search(
        self, measure: Callable[[Config], float], sites: Sequence[str], costs: Mapping[str, float], budget: float,
        tell: Callable[[str], None] = lambda text: None,
    ) -> tuple[Config, list[tuple[Config, float]]]:  # fmt: skip
        """(the best, all that was measured in order)."""
        if sum(costs[s] for s in sites) * min(self.choices) > budget:
            raise SpecError(f"rank {min(self.choices)} everywhere costs {sum(costs[s] for s in sites) * min(self.choices):g}, more than {budget:g}")
        seen: dict[tuple[int, ...], float] = {}
        for k in range(self.first + self.rounds):
            pool = [c for c in candidates(self.choices, [costs[x] for x in sites], budget, self.sampled, self.seed, k) if c not in seen]
            if not pool:
                break
            chosen = pool[0] if k < self.first else pool[int(predict(seen, pool, self.seed).argmax())]
            seen[chosen] = float(measure(dict(zip(sites, chosen))))
            tell(f"{k + 1} of {self.first + self.rounds}: score {seen[chosen]:.4g}, best {max(seen.values()):.4g}")
        best = max(seen, key=lambda c: seen[c])
        return dict(zip(sites, best)), [(dict(zip(sites, c)), v) for c, v in seen.items()]
