"""deltaw (ΔW): every way of changing a trained model's weights cheaply, from one API.

    import deltaw
    adapted = deltaw.attach(model, deltaw.Plan(deltaw.methods.LoRA(r=16)))
    optimizer = adapted.optimizer(lr=2e-4)
    ...
    adapted.save("my-adapter")
"""

from . import errors, fused, interop, methods, ops
from .attach import Adapted, activate, adapters, attach, disabled, prompts, rows, stack
from .bank import Bank
from .blend import blend
from .compress import compress, load_compressed, save_compressed
from .continual import next_task
from .distil import distil
from .files import load, read
from .fuse import Fused
from .methods.rates import Setting, suggest_lr
from .optimize import optimizer
from .parametrise import base_shapes, mup, umup
from .plan import Plan, Preview, preview
from .probe import Stats, probe
from .prompting import context_loss, prefill, tasks
from .quantise import keep_gguf, quantise, requantise
from .ratios import search_ratios
from .route import route
from .routing import watch_routing
from .search import search_ranks
from .spec import METHODS
from .squeeze import squeeze

from . import testing  # isort: skip  (last: it is written against the names above)

__version__ = "0.1.0"
__all__ = [
    "METHODS", "Adapted", "Bank", "Fused", "Plan", "Preview", "Setting", "Stats", "activate", "adapters", "attach", "base_shapes", "blend", "compress",
    "context_loss", "disabled", "distil", "errors", "fused", "interop", "keep_gguf", "load", "load_compressed", "methods", "mup", "next_task", "ops", "optimizer", "prefill", "preview", "probe",
    "prompts", "quantise", "read", "requantise", "route", "rows", "save_compressed", "search_ranks", "search_ratios", "squeeze", "stack", "suggest_lr", "tasks", "testing", "umup", "watch_routing",
]  # fmt: skip
