"""Every method, one file each: `deltaw.methods.LoRA`. The folder is the axis, the file name is the key.

What is no method is in the package of its axis: `deltaw.methods.update.GaLore`, `deltaw.methods.init.PiSSA`, `deltaw.methods.rules.ReLoRA`.
"""

from __future__ import annotations

import importlib
import pkgutil

from ..spec import METHODS, RULES
from . import compress, init, rank, rules, update

for _folder in ("structure", "wrap", "route", "stream", "prefix", "init", "update", "rules", "rank", "compress"):
    _package = importlib.import_module(f"{__name__}.{_folder}")
    for _module in pkgutil.iter_modules(_package.__path__):
        importlib.import_module(f"{_package.__name__}.{_module.name}")

globals().update({cls.__name__: cls for cls in METHODS.table.values()})
for _axis, _table in ((init, init.INITS), (update, update.UPDATES), (rules, RULES), (rank, rank.RANKS), (compress, compress.COMPRESSORS)):
    vars(_axis).update({cls.__name__: cls for cls in _table.table.values()})
__all__ = sorted(cls.__name__ for cls in METHODS.table.values())
