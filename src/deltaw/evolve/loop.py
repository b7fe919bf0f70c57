"""The loop around a search: batches, scores, progress, a record."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import SpecError
from ..sites.watch import place, several
from .members import Members, installed

if TYPE_CHECKING:
    from ..train.progress import Progress

Score = Callable[[nn.Module, Any], Tensor]


class Search:
    """Asks for the scores of a population and learns from them. `epoch`: how often it has done so.

    Of several processes (torch.distributed) each evaluates its share of the blocks of `chunk` members; what they tell one another are
    the scores. Each makes the same step from them.
    """

    kind = ""
    settings: dict[str, Any]

    def __init__(self, model: nn.Module, population: int, groups: int, chunk: int | None):
        self.model, self.population, self.groups, self.epoch = model, population, groups, 0
        self.chunk = chunk or 2 * math.ceil(population / (2 * place()[1]))

    def forwards(self, first: int, count: int) -> dict[nn.Module, Callable[..., Any]]:
        """What the layers do for this block of members."""
        raise NotImplementedError

    def evaluate(self, batch: Any, score: Score) -> Tensor:
        """(population,): the mean score of each member over its rows. Nothing changes."""
        rank, world = place()
        scores = torch.zeros(self.population, dtype=torch.float64)
        for first in range(rank * self.chunk, self.population, world * self.chunk):
            members = Members(first, min(self.chunk, self.population - first), self.population, self.groups)
            with installed(self.model, self.forwards(first, members.count)):
                scores[first : first + members.count] = members.mean(score(self.model, members.spread(batch)))
        if several():
            there = scores.to(next(self.model.parameters()).device)
            torch.distributed.all_reduce(there)
            scores = there.cpu()
        return scores

    def tell(self, scores: Tensor) -> dict[str, float]:
        """One step; what is worth a line in the record."""
        raise NotImplementedError

    def step(self, batch: Any, score: Score) -> Tensor:
        scores = self.evaluate(batch, score)
        self.tell(scores)
        return scores


@dataclass
class Result:
    """What a run has done: `lines`, one per epoch; `data()` is plain JSON."""

    kind: str
    settings: dict[str, Any]
    lines: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    rows: int = 0  # rows that this process has run forwards, all its members together

    def data(self) -> dict[str, Any]:
        return asdict(self)


def run(
    search: Search, batch: Callable[[int], Any], score: Score, epochs: int, progress: Progress | bool | None = False
) -> Result:
    """Epochs search.epoch ... epochs - 1: score(model, rows) on batch(epoch), spread over the population, then a step.

    batch has to depend on the number of the epoch alone: then a search that was restored goes on exactly as the one that was not
    interrupted. progress: as in `deltaw.train` (True shows a bar; needs the extra `train`).
    """
    if epochs < search.epoch:
        raise SpecError(f"this search has made {search.epoch} epochs already; found epochs={epochs}")
    shown, out, began = _shown(progress), Result(search.kind, dict(search.settings)), time.perf_counter()
    if shown is not None:
        shown.begin(epochs, search.epoch, search.kind)
    try:
        while search.epoch < epochs:
            epoch, counted = search.epoch, [0]

            def count(model: nn.Module, rows: Any, counted: list[int] = counted) -> Tensor:
                values = score(model, rows)
                counted[0] += len(values)
                return values

            scores = search.evaluate(batch(epoch), count)
            line = {
                "epoch": epoch,
                "mean": float(scores.mean()),
                "std": float(scores.std(correction=0)),
                "best": float(scores.max()),
            }
            line |= search.tell(scores)
            out.rows += counted[0]
            out.seconds = time.perf_counter() - began
            out.lines.append({**line, "rows": out.rows})
            if shown is not None:
                shown.step(search.epoch)
    finally:
        if shown is not None:
            shown.end()
    return out


def _shown(progress: Progress | bool | None) -> Progress | None:
    """None for False: the package `train` is then not needed."""
    if progress is False:
        return None
    from ..train.progress import choose

    return choose(progress)
