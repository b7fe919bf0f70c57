"""Which facts an adapter has learnt and which it has cost: the protocol of arXiv:2502.14502.

Every fact is asked `n` times (ten four-shot prompts) before and after. The paper trained r = 1, alpha = 2, dropout 0.1 on
the feed-forward projections, 10 epochs at 1e-3 in batches of 16, on 1 to 3000 unknown facts, with 0, 1 or 10 paraphrases
or known facts each.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ...errors import SpecError

UNKNOWN, MAYBE, KNOWN = "unknown", "maybe known", "highly known"
ORDER = (UNKNOWN, MAYBE, KNOWN)
REFUSALS = ("i don't know", "i do not know", "i'm not sure", "i am not sure", "cannot answer", "can't answer", "no information")


def right(answer: str, aliases: Sequence[str]) -> bool:
    """Does the answer contain one of the names of the truth, whatever the case?"""
    text = _plain(answer)
    return any(_plain(a) in text for a in aliases if _plain(a))


def label(answers: Sequence[str], aliases: Sequence[str]) -> str:
    """By the share of right answers: unknown at 0, highly known at 1, maybe known between."""
    if not answers:
        raise SpecError("a fact needs at least one answer to be labelled")
    hits = sum(right(a, aliases) for a in answers)
    return UNKNOWN if hits == 0 else KNOWN if hits == len(answers) else MAYBE


def shifts(before: Sequence[str], after: Sequence[str]) -> dict[str, Any]:
    """Labels of the same facts before and after: the share of all facts that moved up, moved down, and each single move."""
    if len(before) != len(after) or not before:
        raise SpecError(f"labels of the same facts were expected; found {len(before)} before and {len(after)} after")
    moves = Counter((b, a) for b, a in zip(before, after) if a != b)
    up = sum(c for (b, a), c in moves.items() if ORDER.index(a) > ORDER.index(b))
    total = len(before)
    return {
        "positive": up / total,
        "negative": (sum(moves.values()) - up) / total,
        "moves": {f"{b} -> {a}": c / total for (b, a), c in sorted(moves.items())},
    }


def reliability(answers: Sequence[str], aliases: Sequence[Sequence[str]]) -> float:
    """The share of the trained facts that are answered right."""
    return sum(right(a, names) for a, names in zip(answers, aliases, strict=True)) / max(len(answers), 1)


def refusals(answers: Sequence[str], phrases: Sequence[str] = REFUSALS) -> float:
    """The share of answers that say that they are none."""
    return sum(any(p in _plain(a) for p in phrases) for a in answers) / max(len(answers), 1)


def explosion(before: Sequence[str], after: Sequence[str], factor: float = 10.0) -> dict[str, Any]:
    """Does the adapter say the same few things to everything? Unique answers, mean and variance of how often one is given,
    and the answers given more than `factor` times as often as by the base (which counts as once where it never gave it)."""
    was, now = (Counter(_plain(a) for a in answers) for answers in (before, after))
    grown = {a: c for a, c in now.items() if c > factor * max(was[a], 1)}
    return {
        "unique_before": len(was),
        "unique_after": len(now),
        "mean": statistics.fmean(now.values()) if now else 0.0,
        "variance": statistics.pvariance(now.values()) if now else 0.0,
        "exploded": dict(sorted(grown.items(), key=lambda kv: (-kv[1], kv[0]))),
    }


def target_shift(answers: Sequence[str], aliases: Sequence[Sequence[str]], trained: Sequence[str]) -> float:
    """Of the facts that were not trained: the share of wrong answers that are a trained target."""
    wrong = [a for a, names in zip(answers, aliases, strict=True) if not right(a, names)]
    return sum(right(a, trained) for a in wrong) / len(wrong) if wrong else 0.0


def _plain(text: str) -> str:
    return " ".join(text.lower().replace("’", "'").split())
