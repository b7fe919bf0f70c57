"""What one PEFT method's files look like: a small table per method, the rest is shared (format.py)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from ...files.foreign import Inexpressible
from ...plan import Assignment
from ...sites import Site, leaf_site
from ...spec import METHODS, Method, build

P = dict[str, Tensor]
LINEAR = frozenset({"linear", "opaque"})
DENSE = LINEAR | {"conv1d_hf"}


class Dialect:
    """One `peft_type`. Subclasses fill in the tables, and override pack/unpack where a layout differs from ours.

    names: our tensor -> the part of PEFT's key behind "base_model.model.SITE."; shared: the same for model-wide ones.
    apart: tensors that PEFT keeps elsewhere than in adapter_model.safetensors. targets: sites are named in the file.
    tied: PEFT gives the other end of a tied weight the same tensors, unasked, and stores them at both. alone: keys without
    the name of a site.
    neutral: PEFT fields that must have one of the listed values, because others change the mathematics.
    """

    type: ClassVar[str]
    methods: ClassVar[tuple[str, ...]]
    kinds: ClassVar[frozenset[str]] = DENSE
    names: ClassVar[dict[str, str]] = {}
    shared: ClassVar[dict[str, str]] = {}
    apart: ClassVar[frozenset[str]] = frozenset()
    targets: ClassVar[bool] = True
    tied: ClassVar[bool] = False
    alone: ClassVar[bool] = False
    dropout: ClassVar[str | None] = None
    patterns: ClassVar[dict[str, str]] = {}
    handled: ClassVar[frozenset[str]] = frozenset()
    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {}
    ignored: ClassVar[frozenset[str]] = frozenset()

    def fields(self, method: Method, p: P) -> dict[str, Any]:
        """PEFT's fields for a method (without dropout) at a site with these tensors."""
        raise NotImplementedError

    def method(self, f: dict[str, Any]) -> Method:
        """The inverse; patterns have been applied to `f`."""
        raise NotImplementedError

    def refusal(self, a: Assignment) -> str | None:
        """Why PEFT cannot have this method at this site, or computes something else there."""
        if a.site.kind not in self.kinds:
            return f"PEFT's {self.type} does not adapt a {a.site.kind} ({type(a.site.module).__name__})"
        return None

    def check(self, adapted: Any, config: dict[str, Any]) -> None:
        """Raise Inexpressible where PEFT would make something else of the whole configuration."""

    def pack(self, a: Assignment, p: P) -> P:
        return {self.names[k]: v for k, v in p.items()}

    def unpack(self, a: Assignment, t: P, own: P) -> P:
        """The tensors of a site back; `own` has ours, for their names and shapes."""
        return {k: t[self.names[k]].reshape(v.shape) for k, v in own.items()}

    def pack_shared(self, adapted: Any, state: P) -> P:
        """The tensors that sites share, by PEFT's whole keys."""
        return {theirs: state[ours] for ours, theirs in self.shared.items() if ours in state}

    def unpack_shared(self, adapted: Any, t: P, state: P) -> P:
        """The inverse: ours by the keys of `state`, which has them for their names and shapes."""
        return {ours: t[theirs] for ours, theirs in self.shared.items() if ours in state}

    def config(self, adapted: Any, fields: dict[str, Any], directory: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """(the method's part of the configuration, further files), where names of targets are not the way to say it."""
        return {}, {}

    def from_files(self, saved: Any, model: Any) -> Any:
        """The plan, where it follows from further files (`targets` is false); completes `saved`."""
        raise NotImplementedError

    def prepare(self, config: dict[str, Any], tensors: P, plan: Any, model: Any) -> Any:
        """Complete what a file leaves out (PEFT draws or computes it when it loads); returns the plan."""
        return plan


DIALECTS: dict[str, Dialect] = {}  # by peft_type


def dialect(cls: type[Dialect]) -> type[Dialect]:
    DIALECTS[cls.type] = cls()
    return cls


def bare(method: Method) -> tuple[Method, float]:
    """(the method under dropout, its probability)."""
    if method.key == "drop":
        return method.inner, float(method.p)  # type: ignore[attr-defined]
    return method, 0.0


def dialect_of(method: Method) -> Dialect:
    inner, p = bare(method)
    for d in DIALECTS.values():
        if inner.key in d.methods:
            if p and d.dropout is None:
                raise Inexpressible(f"PEFT's {d.type} has no input dropout")
            return d
    raise Inexpressible(f"PEFT 0.21.2 has no method '{inner.key}'")


def other_ends(site: Site, model: nn.Module) -> list[str]:
    """The names of other places that use the same weight."""
    own = site.parameter()
    found = [leaf_site(n, m) for n, m in model.named_modules() if m is not site.module]
    return [s.name for s in found if s is not None and own is not None and s.parameter() is own]


def kernel_of(a: Assignment) -> tuple[int, ...]:
    """The shape of the weight as the module holds it."""
    return tuple(a.site.module.weight.shape)  # type: ignore[arg-type]


def plain(x: float) -> float | int:
    """Whole numbers as integers, as PEFT writes alpha."""
    return int(x) if float(x).is_integer() else float(x)


def new(key: str, **fields: Any) -> Method:
    return build(METHODS[key], fields)  # type: ignore[no-any-return]


def no_anchors(config: dict[str, Any], pattern: str) -> None:
    """Some of PEFT's methods put a prefix in front of a pattern's keys, so that a key with "^" reaches nothing."""
    if odd := [k for k in config.get(pattern) or {} if k.startswith("^")]:
        raise Inexpressible(f"PEFT's {pattern} cannot tell {odd[0][1:]} from sites whose names end alike")
