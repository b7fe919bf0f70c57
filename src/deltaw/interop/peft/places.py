"""Where a PEFT file holds our tensors as they are, so that they can be read without attaching anything."""

from __future__ import annotations

import torch

from ...errors import DeltawError
from ...plan import Assignment
from ...spec import Param
from .config import PREFIX
from .dialect import bare, dialect_of


def keys(a: Assignment) -> dict[str, str] | None:
    """Our tensor -> its key, for a site whose tensors PEFT stores unchanged; None where it reshapes or adds something.

    Found by packing blanks and looking which come out as they went in. Both ends of a tied weight are in the file.
    """
    try:
        inner, _ = bare(a.method)
        d = dialect_of(a.method)
        own = {k: torch.empty(p.shape, device="meta") for k, p in inner.declare(a.site).items() if isinstance(p, Param)}
        packed = d.pack(Assignment(a.site, inner), {k: t for k, t in own.items() if k not in d.apart})
    except (DeltawError, LookupError):
        return None
    found = {id(t): key for key, t in packed.items()}
    if len(packed) != len(own) or any(id(t) not in found for t in own.values()):
        return None
    return {k: f"{PREFIX}{a.site.name}.{found[id(t)]}" for k, t in own.items()}
