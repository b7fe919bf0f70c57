"""What a check found."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import DeltawError
from .laws.base import LawBroken, NotApplicable

PASSED, FAILED, NOT_APPLICABLE = "passed", "failed", "not applicable"


@dataclass(frozen=True)
class Result:
    """One law (or oracle) on one instance in one dtype. detail: what was measured, what failed, or why it says nothing."""

    law: str
    method: str
    dtype: str
    outcome: str
    detail: str
    seconds: float


@dataclass
class Report:
    """What check() found. status: "verified" (laws and an oracle), "lawful" (laws only), "opaque" (a free module, laws
    only) or "failed"."""

    key: str
    oracles: list[str]
    opaque: bool = False
    results: list[Result] = field(default_factory=list)

    @property
    def failures(self) -> list[Result]:
        return [r for r in self.results if r.outcome == FAILED]

    @property
    def ok(self) -> bool:
        return not self.failures

    @property
    def status(self) -> str:
        return "failed" if self.failures else status_of(self.oracles, self.opaque)

    @property
    def seconds(self) -> float:
        return sum(r.seconds for r in self.results)

    def to_dict(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "status": self.status,
            "oracles": self.oracles,
            "results": [asdict(r) for r in self.results],
        }

    def __str__(self) -> str:
        head = f"{self.key}: {self.status} ({len(self.results)} checks, {self.seconds:.1f} s)"
        rows = [f"  {r.outcome:<15}{r.law:<34}{r.dtype:<9}{r.detail}" for r in self.results]
        return "\n".join([head, *rows])


def status_of(oracles: list[str], opaque: bool) -> str:
    """verified > lawful > opaque."""
    return "verified" if oracles else "opaque" if opaque else "lawful"


def timed(name: str, method: Any, dtype: str, run: Any) -> Result:
    """Run one check; any exception is a failure of that check."""
    start = time.perf_counter()
    try:
        outcome, detail = PASSED, run() or ""
    except NotApplicable as why:
        outcome, detail = NOT_APPLICABLE, str(why)
    except (LawBroken, DeltawError) as error:
        outcome, detail = FAILED, str(error)
    except Exception as error:  # a method of somebody else may raise anything
        outcome, detail = FAILED, f"{type(error).__name__}: {error}"
    return Result(name, repr(method), dtype, outcome, detail, time.perf_counter() - start)
