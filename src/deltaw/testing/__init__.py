"""Checks for any method, ours or yours: `deltaw.testing.check(MyMethod)`.

`check` runs the laws (testing/laws: what the algebra promises of every method) and the oracles (testing/oracles: what
others compute) and gives a Report. Nothing here needs pytest.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from ..errors import DeltawError
from ..spec import METHODS, Method
from .laws import LAWS, Case, Law, LawBroken, NotApplicable
from .oracles import COMPARE, declared, instances

__all__ = ["LAWS", "Case", "Law", "LawBroken", "NotApplicable", "Report", "Result", "check", "run_law", "run_oracle"]

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


def is_opaque(method: Method | type[Method]) -> bool:
    """A method that supplies a free nn.Module instead of an expression."""
    return hasattr(method, "module")


def check(
    method: Method | type[Method] | str, laws: Iterable[str] | None = None, oracles: bool = True, compiled: bool = True
) -> Report:
    """Run the laws and the oracles on one method: a key, a class (at its oracle's small sizes) or an instance as it is.

    laws: only these, by name. compiled=False leaves out the one that starts the compiler (seconds). An instance must fit
    layers of 24 x 16 and 16 x 16. Any exception inside a law is a failure of that law.
    """
    if isinstance(method, str):
        method = METHODS[method]
    many = instances(method) if isinstance(method, type) else [method]
    report = Report(method.key, declared(method.key), is_opaque(method))
    chosen = list(LAWS) if laws is None else list(laws)
    for item in many:
        for name in chosen:
            for dtype in LAWS[name].dtypes:
                if compiled or name != "compiled_is_eager":
                    report.results.append(run_law(item, name, dtype))
        if oracles:
            report.results.extend(run_oracle(item, which) for which in report.oracles)
    return report


def run_law(method: Method, name: str, dtype: torch.dtype) -> Result:
    """One law on one instance in one dtype."""
    return _timed(name, method, str(dtype).removeprefix("torch."), lambda: LAWS[name].run(Case(method, dtype)))


def run_oracle(method: Method, which: str) -> Result:
    """One comparison ("closed" or "peft") on one instance."""
    return _timed(f"oracle: {which}", method, "float64", lambda: COMPARE[which](method))


def _timed(name: str, method: Method, dtype: str, run: Any) -> Result:
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
