"""Checks for any method, ours or yours: `deltaw.testing.check(MyMethod)`.

`check` runs the laws (testing/laws: what the algebra promises of every method) and the oracles (testing/oracles: what
others compute) and gives a Report. Nothing here needs pytest.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..errors import DeltawError
from ..spec import METHODS, Method, Param
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


LEARNING = {
    "accumulation_is_one_batch", "autocast_is_close", "base_is_untouched", "base_stays_opaque", "checkpointing_changes_nothing",
    "compiled_is_eager", "count_is_the_formula", "every_step_moves_what_is_trained", "gradients_reach_what_is_trained",
    "learns_with_its_whole_rank", "pickles_and_copies", "rows_take_turns", "works_wherever_a_weight_is",
}  # fmt: skip
"""Laws whose experiment trains the method or changes what is trained."""


def trains_nothing(method: Method) -> bool:
    """Are all of its tensors frozen? Only a method of weights can be asked by its shape alone."""
    if method.sites != "weight":
        return False
    try:
        declared = method.params(24, 16)
    except (NotImplementedError, DeltawError, TypeError):
        return False
    return not any(p.train for p in declared.values() if isinstance(p, Param))


def run_law(method: Method, name: str, dtype: torch.dtype) -> Result:
    """One law on one instance in one dtype."""
    if name in LEARNING and trains_nothing(method):
        reason = NotApplicable("it trains nothing: its tensors are made from trained adapters")

        def refuse() -> None:
            raise reason

        return timed(name, method, str(dtype).removeprefix("torch."), refuse)
    return timed(name, method, str(dtype).removeprefix("torch."), lambda: LAWS[name].run(Case(method, dtype)))


def run_oracle(method: Method, which: str) -> Result:
    """One comparison ("closed" or "peft") on one instance."""
    return timed(f"oracle: {which}", method, "float64", lambda: COMPARE[which](method))
