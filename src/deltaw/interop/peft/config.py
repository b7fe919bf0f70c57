"""Reading adapter_config.json: every field is used, known to be harmless, or refused by name."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ...errors import StateMismatch, TargetError, nearest
from ...files.load import Saved
from ...plan import Plan
from ...sites import matches
from ...sites.find import layer_index
from . import names as rules
from .dialect import DIALECTS, Dialect, new

PREFIX = "base_model.model."
TOKENS = "token_adapter.trainable_tokens_delta"
Named = dict[str, Tensor]
KEPT = ("base_model_name_or_path", "task_type", "revision", "auto_mapping")
COMMON = frozenset(
    {"peft_type", "target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern",
     "rank_pattern", "alpha_pattern", "trainable_token_indices", "inference_mode", "peft_version", *KEPT}
)  # fmt: skip
HEADS = {"SEQ_CLS": {"classifier", "score"}, "TOKEN_CLS": {"classifier", "score"}, "QUESTION_ANS": {"qa_outputs"}}


def plan_of(saved: Saved, model: nn.Module) -> tuple[Plan, dict[str, Any]]:
    """Our plan, and the fields that were not needed and are kept. Completes the tensors where PEFT would as it loads."""
    config, tensors = saved.config or {}, saved.tensors
    d = _known(config)
    kept = {k: v for k, v in config.items() if k in KEPT or k in _unknown(config, d)}
    if not d.targets:
        return d.from_files(saved, model), kept
    names = rules.module_names(model)
    layers, to_save = config.get("layers_to_transform"), _to_save(config, names)
    plan = Plan(
        _wrapped(d, config), targets=_targets(config), exclude=_tuple(config.get("exclude_modules")),
        layers=layers if layers != [] else None, train_modules=to_save, token_rows=_token_rows(config, model),
    )  # fmt: skip
    plan.resolve(model)  # the errors of names that match nothing
    plan = _own_ends(_exact(plan, config, names, to_save), tensors, model)
    plan = _patterned(plan, d, config, model)
    for a in plan.resolve(model):
        if a.site.kind != "module" and a.method.key != "trainable_tokens" and (why := d.refusal(a)):
            raise StateMismatch(f"adapter_config.json: {a.site.name}: {why}")
    return _sorted_tokens(d.prepare(config, tensors, plan, model), config, tensors, model), kept


def _known(config: dict[str, Any]) -> Dialect:
    kind = config.get("peft_type")
    if kind not in DIALECTS:
        raise StateMismatch(
            f"adapter_config.json: peft_type {kind!r} cannot be read; known: {', '.join(sorted(DIALECTS))}"
        )
    d = DIALECTS[kind]
    for name, allowed in d.neutral.items():
        if name in config and config[name] not in allowed:
            raise StateMismatch(
                f"adapter_config.json: {name} = {config[name]!r} changes the mathematics and is not supported (only "
                f"{allowed[0]!r} is); loading without it would give other outputs"
            )
    unknown = _unknown(config, d)
    for name in unknown:
        if config[name] not in (None, False, "none") and config[name] != {} and config[name] != []:
            raise StateMismatch(
                f"adapter_config.json: {name} = {config[name]!r} is unknown here and may change the mathematics. If it does "
                "not, remove it from the file"
            )
    if unknown:
        warnings.warn(
            f"adapter_config.json has fields unknown to this version, kept: {', '.join(unknown)}", stacklevel=4
        )
    for name in sorted({"rank_dropout", "module_dropout", "boft_dropout"} & set(config) - {d.dropout}):
        if config[name]:
            warnings.warn(
                f"adapter_config.json: {name} = {config[name]} acts in training only and is dropped", stacklevel=4
            )
    return d


def _unknown(config: dict[str, Any], d: Dialect) -> list[str]:
    known = COMMON | d.handled | d.ignored | set(d.neutral) | ({d.dropout} if d.dropout else set())
    return sorted(set(config) - known)


def _wrapped(d: Dialect, f: dict[str, Any]) -> Any:
    method, rate = d.method(f), float(f.get(d.dropout) or 0.0) if d.dropout else 0.0
    return new("drop", inner=method, p=rate) if rate else method


def _tuple(value: Any) -> Any:
    return value if isinstance(value, str) and value else tuple(value or ())


def _targets(config: dict[str, Any]) -> Any:
    targets = config.get("target_modules")
    if not targets:
        raise TargetError(
            f"adapter_config.json: target_modules is {targets!r}; PEFT writes the list it used, so this one must be filled in"
        )
    return targets if isinstance(targets, str) else tuple(targets)


def _to_save(config: dict[str, Any], names: list[str]) -> tuple[str, ...]:
    """modules_to_save; of the heads that PEFT adds by itself for a task, one is enough. PEFT looks at the end of a name
    without regard to dots, so that "norm" is also "input_layernorm": then the names are spelled out."""
    given = list(config.get("modules_to_save") or [])
    auto = HEADS.get(config.get("task_type") or "", set()) & set(given)
    there = {g for g in auto if rules.reached(names, [g])}
    given = [g for g in given if g not in auto or g in there or not there]
    exact = rules.saved(names, given)
    return tuple(sorted(exact)) if exact > rules.reached(names, given) else tuple(given)


def _token_rows(config: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    rows = config.get("trainable_token_indices")
    if not rows:
        return {}
    if isinstance(rows, dict):
        return rows
    get = getattr(model, "get_input_embeddings", None)
    table = get() if callable(get) else None
    return {next((n for n, m in model.named_modules() if m is table and n), "embed_tokens"): rows}


def _sorted_tokens(plan: Plan, config: dict[str, Any], tensors: Named, model: nn.Module) -> Plan:
    """PEFT keeps rows in the order of the list; ours are sorted."""
    for pattern, ids in _token_rows(config, model).items():
        order = sorted(range(len(ids)), key=lambda k: ids[k])
        for key in tensors:
            if key.endswith("." + TOKENS) and matches(key[len(PREFIX) : -len(TOKENS) - 1], re.escape(pattern)):
                if len(tensors[key]) == len(ids):
                    tensors[key] = tensors[key][order]
    return plan


def _exact(plan: Plan, config: dict[str, Any], names: list[str], to_save: tuple[str, ...]) -> Plan:
    """layers_to_transform by PEFT's rule, where that picks other sites than ours."""
    if plan.layers is None or isinstance(plan.targets, str):
        return replace(plan, layers=None) if isinstance(plan.targets, str) else plan  # PEFT ignores layers there
    hit = {n for n in rules.reached(names, plan.targets) if not rules.shielded(n, to_save)}
    if plan.exclude:
        hit -= rules.reached(names, plan.exclude)
    exact = {n for n in hit if rules.in_layers(n, plan.layers, config.get("layers_pattern"))}
    if exact == {n for n in hit if layer_index(n) in plan.layers}:
        return plan
    if not exact:
        raise TargetError(f"adapter_config.json: layers_to_transform = {config['layers_to_transform']} picks no target")
    return replace(plan, layers=None, exclude=(), targets="|".join(re.escape(n) for n in sorted(exact)))


def _own_ends(plan: Plan, tensors: Named, model: nn.Module) -> Plan:
    """In PEFT the two ends of a tied weight have adapters of their own."""
    if any(a.shares is not None and a.method.key != "trainable_tokens" for a in plan.resolve(model)):
        return replace(plan, tie=False)
    return plan


def _patterned(plan: Plan, d: Dialect, config: dict[str, Any], model: nn.Module) -> Plan:
    """rank_pattern, alpha_pattern and IA3's feedforward_modules as overrides."""
    tables = {f: dict(config.get(p) or {}) for f, p in d.patterns.items()}
    sites = [a.site.name for a in plan.resolve(model) if a.site.kind != "module" and a.method == plan.method]
    for field, table in tables.items():
        for key in table:
            if not any(rules.pattern_value(n, {key: True}, False) for n in sites):
                raise TargetError(
                    f"adapter_config.json: {d.patterns[field]} '{key}' matches none of the targets{nearest(key, sites)}"
                )
    overrides: dict[str, Any] = {}
    if d.type == "IA3":
        inner = config.get("feedforward_modules") or []
        for entry in [] if isinstance(inner, str) else inner:
            if not any(n.endswith(entry) for n in sites):
                raise TargetError(
                    f"adapter_config.json: feedforward_modules '{entry}' matches none of the targets{nearest(entry, sites)}"
                )
        for n in sites:
            if re.fullmatch(inner, n) if isinstance(inner, str) else any(n.endswith(e) for e in inner):
                overrides[f"^{re.escape(n)}"] = {"side": "in"}
    elif any(tables.values()):
        for n in sites:
            own = config | {f: rules.pattern_value(n, t, config.get(f)) for f, t in tables.items() if t}
            method = _wrapped(d, own)
            if method != plan.method:
                overrides[f"^{re.escape(n)}"] = method
    return replace(plan, overrides=overrides) if overrides else plan
