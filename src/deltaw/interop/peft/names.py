"""PEFT's rules for names, both ways: which modules its lists and expressions reach, and lists that reach given ones."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn

from ...errors import StateMismatch
from ...files.foreign import Inexpressible
from ...sites import is_ours


def module_names(model: nn.Module) -> list[str]:
    return [n for n, _ in model.named_modules(remove_duplicate=False) if n and not is_ours(n)]


def saved(names: Iterable[str], entries: Iterable[str]) -> set[str]:
    """What modules_to_save reaches: PEFT looks at the end of the name, without regard to dots."""
    return {n for n in names if any(n.endswith(e) for e in entries)}


def shielded(name: str, to_save: Iterable[str]) -> bool:
    """PEFT keeps targets out of modules_to_save, whose entries it reads as expressions here."""
    return any(re.match(rf"(^|.*\.){m}($|\..*)", name) for m in to_save)


def reached(names: Iterable[str], targets: Any) -> set[str]:
    if isinstance(targets, str):
        return {n for n in names if re.fullmatch(targets, n)}
    return {n for n in names if n in targets or any(n.endswith(f".{t}") for t in targets)}


def short_list(wanted: Iterable[str], names: Iterable[str]) -> list[str] | str:
    """The shortest suffixes that reach exactly `wanted` among `names`; an expression where no list can."""
    wanted, names = set(wanted), list(names)
    out: dict[str, bool] = {}
    for name in sorted(wanted):
        parts = name.split(".")
        for k in range(1, len(parts) + 1):
            tail = ".".join(parts[-k:])
            if tail not in out:
                out[tail] = reached(names, [tail]) <= wanted
            if out[tail]:
                break
        else:
            return "|".join(re.escape(n) for n in sorted(wanted))
    keep = [t for t, good in out.items() if good]
    return sorted(keep)


def patterns(values: dict[str, Any], default: Any) -> dict[str, Any]:
    """{name: value} where it is not the default, as PEFT's rank_pattern; keys are anchored where a name ends another."""
    out = {}
    for name, value in values.items():
        if value != default:
            clash = any(n != name and re.match(rf"(.*\.)?({name})$", n) for n in values)
            out[f"^{re.escape(name)}" if clash else name] = value
    return out


def pattern_value(name: str, table: dict[str, Any], default: Any) -> Any:
    """PEFT's get_pattern_key: the first entry that matches."""
    for key, value in table.items():
        try:
            if re.match(rf"(.*\.)?({key})$", name):
                return value
        except re.error as error:
            raise StateMismatch(f"adapter_config.json: '{key}' is no regular expression: {error}") from error
    return default


def in_layers(name: str, layers: Any, layers_pattern: Any) -> bool:
    """PEFT's layers_to_transform."""
    wanted = [layers] if isinstance(layers, int) else list(layers)
    given = [layers_pattern] if isinstance(layers_pattern, str) else list(layers_pattern or [])
    rules = [rf"(?:^|.*?\.){p}\.(?P<idx>\d+)\." for p in given if p] or [r".*?\.[^.]*\.(?P<idx>\d+)\."]
    found = next((m for rule in rules if (m := re.match(rule, name))), None)
    return found is not None and int(found["idx"]) in wanted


def sides(inner: set[str], targets: set[str], names: list[str]) -> tuple[Any, Any]:
    """(target_modules, feedforward_modules) of IA3: disjoint lists, since PEFT looks at ends of names again."""
    outer = targets - inner
    a, b = short_list(outer, names), short_list(inner, names)
    if isinstance(a, list) and isinstance(b, list) and not any(n.endswith(e) for n in outer for e in b):
        return sorted({*a, *b}), b
    raise Inexpressible("PEFT's lists cannot tell the two sides of these sites apart")
