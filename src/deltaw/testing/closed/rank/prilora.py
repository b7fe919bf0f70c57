"""PRILoRA's ranks by hand, and their sum."""

from __future__ import annotations

from ....methods.rank.prilora import PRILoRA
from ....ops import as_op
from ....spec import METHODS, Start
from ...laws.base import must
from ...tiny import values


def check() -> str:
    lora = METHODS["lora"](r=8)  # type: ignore[call-arg]
    starts = [Start(f"layers.{k}.{n}", "linear", as_op(values(32, 24, name=n)), 0, lora) for k in range(5) for n in ("q", "v")]
    found = PRILoRA(4, 12).ranks(starts, {})
    must([found[f"layers.{k}.q"] for k in range(5)] == [4, 6, 8, 10, 12], f"found {found}")
    must(sum(found.values()) == 8 * len(starts), "a symmetric pair has the uniform budget")
    return "4, 6, 8, 10, 12 over five layers"
