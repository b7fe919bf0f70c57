"""PEFT's files, read and written without PEFT: one small dialect per method (0.21.2)."""

from ...files.foreign import FOREIGN
from . import gralora, hira, hra, ia3, loha, lokr, lora, prompts, road, shira, vera, xlora  # noqa: F401  (each registers its dialect)
from .format import PeftFormat

FOREIGN["peft"] = PeftFormat()
