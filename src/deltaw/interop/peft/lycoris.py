"""What PEFT's LOHA and LOKR have in common."""

from __future__ import annotations

from torch import nn

from ...plan import Assignment
from .dialect import LINEAR, Dialect

PATTERNS = {"r": "rank_pattern", "alpha": "alpha_pattern"}
TRAINING_ONLY = frozenset({"init_weights", "rank_dropout", "module_dropout", "rank_dropout_scale"})


class Lycoris(Dialect):
    kinds = LINEAR | {"conv"}
    patterns = PATTERNS
    neutral = {"use_effective_conv2d": (False,)}  # Tucker cores
    ignored = TRAINING_ONLY

    def refusal(self, a: Assignment) -> str | None:
        if a.site.kind == "conv" and not isinstance(a.site.module, (nn.Conv1d, nn.Conv2d)):
            return f"PEFT's {self.type} does not adapt a {type(a.site.module).__name__}"
        return super().refusal(a)
