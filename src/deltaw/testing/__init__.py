"""Checks for any method, ours or yours: `deltaw.testing.check(MyMethod)`.

`check` runs the laws (testing/laws: what the algebra promises of every method) and the oracles (testing/oracles: what
others compute) and gives a Report. Nothing here needs pytest.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..spec import METHODS, Method
from .axes import AXES, check_axis, oracles_of
from .laws import LAWS, Case, Law, LawBroken, NotApplicable
from .oracles import COMPARE, declared, instances
from .report import Report, Result, status_of, timed

__all__ = ["AXES", "LAWS", "Case", "Law", "LawBroken", "NotApplicable", "Report", "Result", "check", "check_axis", "oracles_of", "run_law", "run_oracle", "status_of"]


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
    return timed(name, method, str(dtype).removeprefix("torch."), lambda: LAWS[name].run(Case(method, dtype)))


def run_oracle(method: Method, which: str) -> Result:
    """One comparison ("closed" or "peft") on one instance."""
    return timed(f"oracle: {which}", method, "float64", lambda: COMPARE[which](method))
