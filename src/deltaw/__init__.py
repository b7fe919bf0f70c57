"""deltaw (ΔW): every way of changing a trained model's weights cheaply, from one API.

    import deltaw
    adapted = deltaw.attach(model, deltaw.Plan(deltaw.methods.LoRA(r=16)))
    optimizer = adapted.optimizer(lr=2e-4)
    ...
    adapted.save("my-adapter")

Names are resolved when they are first used: importing torch takes a second or two, which `deltaw --help` need not pay.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import errors, methods, ops, testing
    from .attach import Adapted, activate, adapters, attach, disabled, rows
    from .files import load
    from .plan import Plan, Preview, preview
    from .spec import METHODS

__version__ = "0.1.0"
__all__ = [
    "METHODS", "Adapted", "Plan", "Preview", "activate", "adapters", "attach", "disabled", "errors", "load", "methods",
    "ops", "preview", "rows", "testing",
]  # fmt: skip

_HOME = {
    **dict.fromkeys(("Adapted", "activate", "adapters", "attach", "disabled", "rows"), "attach"),
    **dict.fromkeys(("Plan", "Preview", "preview"), "plan"),
    "METHODS": "spec",
    "load": "files",
}


class _Package(ModuleType):
    """Importing the submodule `deltaw.attach` must not hide the function `deltaw.attach`."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name in _HOME:
            value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
        elif name in __all__:
            value = importlib.import_module(f"{__name__}.{name}")
        else:
            raise AttributeError(f"module 'deltaw' has no attribute '{name}'")
        super().__setattr__(name, value)
        return value

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
