"""Trained copies of a module's own parameters (no method imports another)."""

from __future__ import annotations

from typing import Any

from ..sites.module import ModuleSite
from ..spec import Declared, Fill, Param


def copies(site: Any) -> Declared:
    """A trained copy of every parameter of a whole module."""
    assert isinstance(site, ModuleSite)

    def copy_of(name: str) -> Fill:
        return lambda start, _: site.originals()[name].detach().clone()

    return {k: Param(tuple(v.shape), copy_of(k)) for k, v in site.originals().items()}
