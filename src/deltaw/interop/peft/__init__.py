"""PEFT's files, read and written without PEFT: one small dialect per method (0.21.2)."""

from ...files.foreign import FOREIGN
from . import (  # noqa: F401  (each registers its dialect)
    adamss,
    frod,
    gralora,
    hira,
    hra,
    ia3,
    loha,
    lokr,
    lora,
    osf,
    psoft,
    pvera,
    randlora,
    road,
    shira,
    supertuning,
    tinylora,
    trainable_tokens,
    uni_lora,
    vb_lora,
    vera,
    xlora,
)
from .format import PeftFormat

FOREIGN["peft"] = PeftFormat()
