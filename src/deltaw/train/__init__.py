"""Training (extra `train`): a recipe in, an adapter, its metrics and its picture out.

    import deltaw.train
    result = deltaw.train.run("recipe.yaml", ["train.lr=1e-4"])
    result.adapted.save("my-adapter")

On transformers' Trainer and accelerate, so that their launchers (torchrun, accelerate launch) and loggers work.
"""

from .base import load_base
from .data import read_rows
from .generation import evaluate, generate
from .progress import Bar, Progress
from .recipe import Recipe
from .rewards import reward
from .running import RunResult, run

__all__ = ["Bar", "Progress", "Recipe", "RunResult", "evaluate", "generate", "load_base", "read_rows", "reward", "run"]
