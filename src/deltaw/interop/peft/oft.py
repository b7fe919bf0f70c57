"""PEFT's OFT."""

from __future__ import annotations

from typing import Any

from ...errors import StateMismatch
from ...spec import Method
from .blocks import Blocks, sized
from .dialect import P, dialect, new


def nearest_divisor(n: int, b: int) -> int:
    """The block size (or number of blocks) that PEFT takes for n inputs where b does not divide n."""
    if b >= n:
        return n
    low, high = b, b
    while n % high:
        high += 1
    while n % low:
        low -= 1
    return low if b - low <= high - b else high


@dialect
class Oft(Blocks):
    type = "OFT"
    methods = ("oft",)
    names = {"q": "oft_R.weight"}
    handled = frozenset(
        {"r", "oft_block_size", "use_cayley_neumann", "num_cayley_neumann_terms", "block_share", "coft", "eps"}
    )
    ignored = Blocks.ignored | {"module_dropout"}  # blocks set to I in training; a warning says so

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        return {"r": 0, "oft_block_size": method.block_size, "use_cayley_neumann": method.terms > 0,
                "num_cayley_neumann_terms": method.terms or 5, "block_share": method.share,
                "coft": method.eps is not None, "eps": 6e-5 if method.eps is None else method.eps}  # fmt: skip

    def method(self, f: dict[str, Any]) -> Method:
        terms = f.get("num_cayley_neumann_terms", 5) if f.get("use_cayley_neumann", True) else 0
        if 0 < terms < 3:  # PEFT's series at 3 is that at 4
            raise StateMismatch(
                f"adapter_config.json: num_cayley_neumann_terms = {terms} rotates by I or I + 2 Q, which is no part of the "
                "series here; at least 3 terms can be read"
            )
        return new("oft", block_size=f.get("oft_block_size") or 2, terms=max(terms, 4) if terms else 0,
                   share=f.get("block_share", False), eps=f.get("eps", 6e-5) if f.get("coft") else None)  # fmt: skip

    def prepare(self, config: dict[str, Any], tensors: P, plan: Any, model: Any) -> Any:
        r, b = config.get("r", 0), config.get("oft_block_size", 32)
        return sized(plan, model, (lambda n: n // nearest_divisor(n, r)) if r else (lambda n: nearest_divisor(n, b)))
