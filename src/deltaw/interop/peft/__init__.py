"""PEFT's files, read and written without PEFT: one small dialect per method (0.21.2)."""

import importlib
import pkgutil

from ...files.foreign import FOREIGN
from .format import PeftFormat

for _module in pkgutil.iter_modules(__path__):  # each registers its dialect
    importlib.import_module(f"{__name__}.{_module.name}")

FOREIGN["peft"] = PeftFormat()
