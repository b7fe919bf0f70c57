"""The demonstration: a real language model learns a task it cannot do, on this machine, in minutes."""

from .run import run

__all__ = ["run"]
