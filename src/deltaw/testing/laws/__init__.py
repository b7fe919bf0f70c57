"""The laws that every method must obey, run over the registry. `LAWS` lists them by name, in the order of their files."""

from . import algebra, lifecycle, numerics, places, several, training
from .base import LAWS, Case, Law, LawBroken, NotApplicable

__all__ = [
    "LAWS", "Case", "Law", "LawBroken", "NotApplicable", "algebra", "lifecycle", "numerics",
    "places", "several", "training",
]  # fmt: skip
