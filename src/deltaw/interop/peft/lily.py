"""PEFT's LILY."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch

from ...errors import StateMismatch
from ...files.foreign import Inexpressible
from ...plan import Assignment
from ...spec import Method, Param
from .config import PREFIX
from .dialect import Dialect, P, dialect, new


@dialect
class Lily(Dialect):
    """PEFT ties sites by the target they match and their shape, A by their order among these; every site has a copy in
    the file. Its mean runs over the whole batch: equal outputs row by row."""

    type = "LILY"
    methods = ("lily",)
    kinds = frozenset({"linear"})
    names = {"A": "lily_A.weight", "B": "lily_B.weight", "R": "lily_router.weight"}
    handled = frozenset({"r", "stride_A", "num_B", "scaling"})
    ignored = frozenset({"init_weights"})

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        return {k: getattr(method, k) for k in ("r", "stride_A", "num_B", "scaling")}

    def method(self, f: dict[str, Any]) -> Method:
        return new("lily", r=f.get("r", 32), stride_A=f.get("stride_A", 1), num_B=f.get("num_B", 2),
                   scaling=f.get("scaling", 1.0))  # fmt: skip

    def pack_shared(self, adapted: Any, state: P) -> P:
        return {theirs: state[ours].reshape(shape) for theirs, (ours, shape) in self.copies(adapted).items()}

    def unpack_shared(self, adapted: Any, t: P, state: P) -> P:
        out: P = {}
        for theirs, (ours, _) in self.copies(adapted).items():
            value = t[theirs].reshape(state[ours].shape)
            if not torch.equal(out.setdefault(ours, value), value):
                raise StateMismatch(f"'{theirs}' differs from what its site shares with others here, '{ours}'")
        return out

    def copies(self, adapted: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
        """PEFT's key at every site -> (ours for the shared tensor, its shape as a matrix)."""
        return {
            f"{PREFIX}{site}.{self.names[word]}": (key, (-1, shape[-1]))
            for site, entry in adapted.entries().items()
            for word, (key, shape) in entry.shared.items()
        }

    def check(self, adapted: Any, config: dict[str, Any]) -> None:
        """PEFT, loading this, has to tie what is tied here and nothing else."""
        targets = config["target_modules"]
        kin: dict[Any, list[Assignment]] = defaultdict(list)
        for a in adapted.assignments:
            if a.site.kind == "linear":
                hit = [targets] if isinstance(targets, str) else [t for t in targets if a.site.name.endswith(t)]
                if len(hit) > 1:
                    raise Inexpressible(f"{a.site.name}: PEFT's LILY could count it to any of the targets {hit}")
                kin[hit[0], a.site.shape].append(a)
        theirs: dict[str, list[str]] = defaultdict(list)
        ours: dict[str, list[str]] = defaultdict(list)
        for word, members in kin.items():
            for k, a in enumerate(members):
                theirs[f"B {word}"].append(a.site.name)
                theirs[f"A {word} {k // config['stride_A']}"].append(a.site.name)
                for name, p in a.method.declare(a.site).items():
                    if isinstance(p, Param) and p.scope != "site":
                        ours[f"{name} {p.scope}"].append(a.site.name)
        if sorted(theirs.values()) != sorted(ours.values()):
            raise Inexpressible("PEFT's LILY would share A or B among other sites than are shared here")
