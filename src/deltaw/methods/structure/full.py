"""Full training of chosen modules: heads, norms, new embeddings."""

from __future__ import annotations

from typing import Any, ClassVar

from ...ops import Affine, Map
from ...sites.module import ModuleSite, Replace
from ...spec import Declared, Method, Param, Tensors, method


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
        def copy_of(name: str) -> Any:
            return lambda start, _: site.originals()[name].detach().clone()

        assert isinstance(site, ModuleSite)
        return {k: Param(tuple(v.shape), copy_of(k)) for k, v in site.originals().items()}

    def layer(self, L: Affine, p: Tensors) -> Map:
        return Replace({k: getattr(p, k) for k in p.names()})
