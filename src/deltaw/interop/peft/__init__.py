"""PEFT's files, read and written without PEFT: one small dialect per method (0.21.2)."""

from ...files.foreign import FOREIGN
from . import (  # noqa: F401  (each registers its dialect)
    c3a,
    deft,
    delora,
    fourierft,
    glora,
    gralora,
    hira,
    hra,
    ia3,
    lily,
    loha,
    lokr,
    lora,
    miss,
    peanut,
    road,
    shira,
    vera,
    waveft,
    xlora,
)
from .format import PeftFormat

FOREIGN["peft"] = PeftFormat()
