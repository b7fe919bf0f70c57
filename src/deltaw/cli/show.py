"""deltaw show: everything about one method."""

from __future__ import annotations

import dataclasses
import inspect
import json as jsonlib
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from .output import AsJson, as_json, say, table

FACTS = (
    "key", "class", "axis", "paper", "status", "mergeable", "exact_lora_rank", "needs_dense_base", "identity_at_start",
    "start", "formula", "in_peft", "moves", "state", "needs", "shifts", "oracles", "claims",
)  # fmt: skip


def run(
    key: Annotated[str, typer.Argument(help="A key, or AXIS/KEY; `deltaw methods` lists them.")],
    shape: Annotated[str, typer.Option(help="The sample layer, out x in.")] = "1024x768",
    json: AsJson = False,
) -> None:
    """Show a method: its equation, fields, tensors at a sample shape, and what follows from its expression; or an update rule,
    an initialisation, a rule."""
    from ..catalogue import entry, entry_of, named
    from ..spec import METHODS
    from ..testing import AXES

    (axis, key), *more = named(key)  # a structure first
    other = axis in AXES
    cls = AXES[axis][key] if other else METHODS[key]
    facts, fields = entry_of(axis, key) if other else entry(cls), fields_of(cls)
    tensors = [] if other else tensors_of(cls, *sizes(shape))
    if json:
        sized = {} if other else {"shape": list(sizes(shape)), "tensors": tensors}
        as_json({**facts, "doc": inspect.getdoc(cls), "fields": fields, **sized})
        return
    say(f"{cls.__name__}\n")
    say((inspect.getdoc(cls) or "") + "\n")
    if fields:
        table(["field", "type", "default"], [(f["name"], f["type"], f["default"]) for f in fields])
    if other:
        pass
    elif isinstance(tensors, str):
        say(f"tensors at {shape}: {tensors}\n")
    else:
        table(["tensor", "shape", "trained", "kept", "seed"],
              [(t["name"], "x".join(map(str, t["shape"])), t["trained"], t["scope"], t["seed"]) for t in tensors])  # fmt: skip
    for name in FACTS:
        if facts.get(name) not in (None, "", []):
            value = facts[name]
            say(f"{name:<18} {', '.join(map(str, value)) if isinstance(value, list) else value}")
    for axis, key in more:
        say(f"there is another one of this name: deltaw show {axis}/{key}")


def sizes(shape: str) -> tuple[int, int]:
    from ..errors import SpecError

    try:
        m, n = (int(part) for part in shape.lower().split("x"))
    except ValueError:
        raise SpecError(f"a shape is written OUTxIN, such as 1024x768; found '{shape}'") from None
    return m, n


def fields_of(cls: Any) -> list[dict[str, Any]]:
    """Name, type and default of every field; the default is "" where a value has to be given."""
    out, hints = [], get_type_hints(cls)
    for f in dataclasses.fields(cls):
        value = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        kind = f.type if isinstance(f.type, str) else f.type.__name__
        if get_origin(hints[f.name]) is Literal:  # the words themselves, where the type has a name
            kind = f"Literal[{', '.join(map(jsonlib.dumps, get_args(hints[f.name])))}]"
        out.append({"name": f.name, "type": kind, "default": "" if value is dataclasses.MISSING else repr(value)})
    return out


def tensors_of(cls: Any, m: int, n: int) -> list[dict[str, Any]] | str:
    """The tensors at a layer of that shape at the default sizes, or why there are none to list."""
    from ..errors import SpecError
    from ..spec import Param

    if cls().sites in ("module", "norm"):
        return "those of the module it is put on"
    width = m if cls().sites == "stream" else n
    try:
        declared = cls().params(m, width)
    except SpecError as error:
        return str(error)
    out: list[dict[str, Any]] = []
    for name, p in declared.items():
        if isinstance(p, Param):
            kept = "per site" if p.scope == "site" else f"once per {p.scope}"
            out.append({"name": name, "shape": list(p.shape), "trained": p.train, "scope": kept, "seed": p.seed})
        else:
            out.append({"name": name, "shape": [], "trained": False, "scope": f"signal '{p.name}'", "seed": None})
    return out
