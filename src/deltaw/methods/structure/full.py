"""Full training of chosen modules: heads, norms, new embeddings."""

from __future__ import annotations

from typing import Any, ClassVar

from ...ops import Affine, Map
from ...sites.module import Replace
from ...spec import Declared, Method, Tensors, method
from ..copies import copies


@method(paper="(ordinary fine-tuning of a part)")
class Full(Method):
    """theta' = theta_trained for every parameter of a module, started as a copy: the base's own stay untouched.

    What `Plan(train_modules=[...])` uses for heads; PEFT calls it modules_to_save. Count: the module's parameters.
    Trap: a copy of a tied weight is no longer tied.

    >>> from deltaw.methods import Full
    >>> Full().sites
    'module'
    """

    sites: ClassVar[str] = "module"

    def declare(self, site: Any) -> Declared:
        return copies(site)

    def layer(self, L: Affine, p: Tensors) -> Map:
        return Replace({k: getattr(p, k) for k in p.names()})
