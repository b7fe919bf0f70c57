"""PEFT's files, read and written without PEFT: one small dialect per method (0.21.2)."""

from ...files.foreign import FOREIGN
from . import (  # noqa: F401  (each registers its dialect)
    adalora,
    beft,
    boft,
    gralora,
    hira,
    hra,
    ia3,
    ln_tuning,
    loha,
    lokr,
    lora,
    oft,
    road,
    shira,
    vera,
    xlora,
)  # fmt: skip
from .format import PeftFormat

FOREIGN["peft"] = PeftFormat()
