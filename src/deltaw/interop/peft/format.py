"""PEFT 0.21.2's adapter directory: adapter_config.json, and keys base_model.model.SITE.TENSOR."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...errors import StateMismatch, nearest
from ...files.foreign import Inexpressible
from ...plan import Assignment, Plan
from . import names as rules
from . import places
from .config import PREFIX, TOKENS, Named, plan_of
from .dialect import DIALECTS, Dialect, bare, dialect_of, new, other_ends

if TYPE_CHECKING:
    from ...attach import Adapted
    from ...files.disk import Writer
    from ...files.load import Saved

PEFT_VERSION = "0.21.2"


class PeftFormat:
    name = "peft"
    config_name = "adapter_config.json"

    # ---- writing

    def write(self, adapted: Adapted, state: Named, directory: Path) -> tuple[dict[str, Any], Named, dict[str, Writer]]:
        d = dialect_of(adapted.plan.method)  # type: ignore[arg-type]
        main, tensors = self._pack(adapted, state, d)
        if not d.targets:
            config, files = d.config(adapted, main[0][1], directory)
            kept = adapted.__dict__.get("kept", {}).get("peft", {})
            return {**self._head(adapted, d), **config, **kept}, tensors, files
        config = self._config(adapted, d, {a.site.name: f for a, f in main})
        d.check(adapted, config)
        return config, tensors, {}

    def _head(self, adapted: Adapted, d: Dialect) -> dict[str, Any]:
        return {
            "peft_type": d.type, "peft_version": PEFT_VERSION, "inference_mode": True, "auto_mapping": None,
            "revision": None, "task_type": _task(adapted.model), "base_model_name_or_path": _origin(adapted.model),
        }  # fmt: skip

    def _pack(
        self, adapted: Adapted, state: Named, d: Dialect
    ) -> tuple[list[tuple[Assignment, dict[str, Any]]], Named]:
        """(main sites with their PEFT fields, tensors by key)."""
        main: list[tuple[Assignment, dict[str, Any]]] = []
        out: Named = {}
        for a in adapted.assignments:
            p = _of(state, a.shares or a.site.name, adapted)
            if _whole(a, d):
                found = p | dict(a.site.module.named_buffers())
                persistent = a.site.module.state_dict()
                found = {k: v for k, v in found.items() if k in p or k in persistent}
            elif _tokens(a, adapted):
                found = {} if a.flip else {TOKENS: p["v"]}
            else:
                if dialect_of(a.method) is not d:
                    raise Inexpressible(
                        f"{a.site.name}: PEFT has one method per adapter; found {a.method.key} beside {d.type}"
                    )
                if a.flip and not d.tied and d.type != "LORA":
                    raise Inexpressible(f"{a.site.name}: PEFT cannot tie {a.method.key} at both ends of a weight")
                twin = d.tied and a.shares is not None
                if d.tied and not twin and (odd := set(other_ends(a.site, adapted.model)) - {o.site.name for o in adapted.assignments}):
                    raise Inexpressible(f"{a.site.name}: PEFT would adapt {', '.join(odd)}, which shares its weight, as well")
                if not twin and (why := d.refusal(a)):
                    raise Inexpressible(f"{a.site.name}: {why}")
                inner, rate = bare(a.method)
                fields = d.fields(inner, p) | ({d.dropout: rate} if d.dropout else {})
                main += [] if twin else [(a, fields)]
                bared = Assignment(a.site, inner, a.shares, a.flip)
                found = d.pack(bared, {k: v for k, v in p.items() if k not in d.apart})
            out |= {_before(d, a) + k: v for k, v in found.items()}
        return main, out | d.pack_shared(adapted, state)

    def _config(self, adapted: Adapted, d: Dialect, sites: dict[str, dict[str, Any]]) -> dict[str, Any]:
        model, kept = adapted.model, adapted.__dict__.get("kept", {}).get("peft", {})
        names = rules.module_names(model)
        to_save = sorted(a.site.name for a in adapted.assignments if _whole(a, d))
        tokens = {
            a.site.name: sorted(a.method.ids)  # type: ignore[attr-defined]
            for a in adapted.assignments
            if _tokens(a, adapted) and not a.flip
        }
        if rules.saved(names, to_save) != set(to_save):
            raise Inexpressible(f"PEFT would also save other modules whose names end in one of {to_save}")
        if (tokens or to_save) and (
            odd := [w for w in [*tokens, *to_save] if w.endswith(tuple(f".{t}" for t in tokens))]
        ):
            raise Inexpressible(f"PEFT would confuse the names {odd} of token rows")
        open_names = [n for n in names if not rules.shielded(n, to_save)]
        side = d.type == "IA3"
        usual = json.loads(
            Counter(
                json.dumps({k: v for k, v in f.items() if k != "side"}, sort_keys=True) for f in sites.values()
            ).most_common(1)[0][0]
        )
        config: dict[str, Any] = {
            **self._head(adapted, d), **usual, "modules_to_save": to_save or None,
        }  # fmt: skip
        if side:
            inner = {n for n, f in sites.items() if f["side"] == "in"}
            config["target_modules"], config["feedforward_modules"] = rules.sides(inner, set(sites), open_names)
        else:
            config["target_modules"] = rules.short_list(sites, open_names)
        for field, pattern in d.patterns.items():
            config[pattern] = rules.patterns({n: f[field] for n, f in sites.items()}, usual[field])
        for n, f in sites.items():
            if bad := [k for k in {**usual, **f} if k != "side" and f.get(k) != usual.get(k) and k not in d.patterns]:
                raise Inexpressible(f"{n}: PEFT has one value of {', '.join(bad)} for all sites of a {d.type}")
        if "bias" in d.neutral:
            config.setdefault("bias", "none")
        if "fan_in_fan_out" in d.ignored:
            config["fan_in_fan_out"] = all(
                a.site.kind == "conv1d_hf" for a in adapted.assignments if a.site.name in sites
            )
        if tokens:
            if d.type != "LORA":
                raise Inexpressible(f"PEFT trains token rows beside LoRA only, not beside {d.type}")
            config["trainable_token_indices"] = tokens
        config.update(kept)
        return config

    def plain_lora(self, adapted: Adapted, factors: dict[str, tuple[Tensor, Tensor]]) -> tuple[dict[str, Any], Named]:
        d, state = DIALECTS["LORA"], adapted.state()
        out: Named = {}
        sites: dict[str, dict[str, Any]] = {}
        for a in adapted.assignments:
            if a.site.kind == "module":
                p = _of(state, a.site.name, adapted)
                out |= {f"{PREFIX}{a.site.name}.{k}": v for k, v in p.items()}
            elif a.site.name in factors:
                B, A = factors[a.site.name]
                r = max(A.shape[0], 1)
                B, A = (B, A) if A.shape[0] else (B.new_zeros(B.shape[0], 1), A.new_zeros(1, A.shape[1]))
                one = Assignment(a.site, new("lora", r=r, alpha=float(r)))
                if why := d.refusal(one):
                    raise Inexpressible(f"{a.site.name}: {why}")
                sites[a.site.name] = d.fields(one.method, {}) | {"lora_dropout": 0.0}
                out |= {f"{PREFIX}{a.site.name}.{k}": v for k, v in d.pack(one, {"A": A, "B": B}).items()}
        return self._config(adapted, d, sites), out

    # ---- reading

    def native(self, adapted: Adapted, tensors: Named) -> Named:
        state = adapted.state()
        d = dialect_of(adapted.plan.method)  # type: ignore[arg-type]
        blank = {k: torch.zeros((), dtype=v.dtype).expand(v.shape) for k, v in state.items()}
        _, wanted = self._pack(adapted, blank, d)
        _strict(adapted, wanted, tensors)
        out: Named = {}
        for a in adapted.assignments:
            if a.shares is not None:
                continue
            own, prefix = _of(state, a.site.name, adapted), _before(d, a)
            here = {k[len(prefix) :]: v for k, v in tensors.items() if k in wanted and k.startswith(prefix)}
            if _whole(a, d):
                _same_buffers(a, {k: v for k, v in here.items() if k not in own})
                found = {k: v for k, v in here.items() if k in own}
            elif _tokens(a, adapted):
                ids = torch.tensor(sorted(a.method.ids))  # type: ignore[attr-defined]
                W = a.site.leaf().op
                found = {"v": here[TOKENS], "v0": W.cols(ids.to(W.like.device)).detach().to(own["v0"]), "i": ids}
            else:
                own = {k: v for k, v in own.items() if k not in d.apart}
                found = d.unpack(Assignment(a.site, bare(a.method)[0], None, a.flip), here, own)
            out |= {f"{a.site.name}.{k}": v for k, v in found.items()}
        return out | d.unpack_shared(adapted, tensors, state)

    def plan(self, saved: Saved, model: nn.Module) -> tuple[Plan, dict[str, Any]]:
        return plan_of(saved, model)

    def keys(self, a: Assignment) -> dict[str, str] | None:
        return places.keys(a)


def _before(d: Dialect, a: Assignment) -> str:
    """What stands in front of the names of a site's tensors."""
    return "" if d.alone and a.site.kind != "module" else f"{PREFIX}{a.site.name}."


def _of(state: Named, site: str, adapted: Adapted) -> Named:
    """The tensors of one site by their own names."""
    entry = adapted.entries().get(site)
    return {} if entry is None else {k: state[f"{site}.{k}"] for k in entry.own}


def _whole(a: Assignment, d: Dialect) -> bool:
    """A module that is trained in full beside the method: modules_to_save."""
    return a.site.kind == "module" and a.method.key not in d.methods


def _tokens(a: Assignment, adapted: Adapted) -> bool:
    return a.method.key == "trainable_tokens" and adapted.plan.method.key != "trainable_tokens"  # type: ignore[union-attr]


def _task(model: nn.Module) -> str | None:
    """Only the one task type that adds nothing to the model."""
    causal = type(model).__name__.endswith(("ForCausalLM", "LMHeadModel")) and hasattr(
        model, "prepare_inputs_for_generation"
    )
    return "CAUSAL_LM" if causal else None


def _origin(model: nn.Module) -> str | None:
    return getattr(getattr(model, "config", None), "_name_or_path", None) or None


def _strict(adapted: Adapted, wanted: Named, found: Named) -> None:
    lost = sorted(set(wanted) - set(found))
    extra = [k for k in sorted(set(found) - set(wanted)) if not _base_copy(adapted, k, found[k])]
    if lost:
        raise StateMismatch(
            f"{len(lost)} of {len(wanted)} tensors are missing, first '{lost[0]}', expected with shape "
            f"{tuple(wanted[lost[0]].shape)}{nearest(lost[0], extra)}. The file is incomplete, or belongs to another plan"
        )
    if extra:
        raise StateMismatch(
            f"{len(extra)} tensors belong to nothing in this adapter, first '{extra[0]}' of shape "
            f"{tuple(found[extra[0]].shape)}{nearest(extra[0], wanted)}. The file belongs to another model or configuration"
        )
    for key, tensor in wanted.items():
        if found[key].shape != tensor.shape:
            raise StateMismatch(
                f"'{key}': expected shape {tuple(tensor.shape)}, found {tuple(found[key].shape)}; the file belongs to another "
                "rank or base"
            )


def _base_copy(adapted: Adapted, key: str, tensor: Tensor) -> bool:
    """PEFT stores the base weight of a targeted embedding beside the adapter; it has to be the one that is here."""
    if not (key.startswith(PREFIX) and key.endswith(".base_layer.weight")):
        return False
    site = key[len(PREFIX) : -len(".base_layer.weight")]
    here = next((a.site.parameter() for a in adapted.assignments if a.site.name == site), None)
    if here is None:
        return False
    if here.shape != tensor.shape or not torch.allclose(
        here.detach().float().cpu(), tensor.float(), rtol=1e-2, atol=1e-6
    ):
        raise StateMismatch(
            f"'{key}' holds another base weight than this model has at '{site}': resized, or another base"
        )
    return True


def _same_buffers(a: Assignment, found: Named) -> None:
    own = dict(a.site.module.named_buffers())
    for name, tensor in found.items():
        if not torch.equal(own[name].cpu().to(tensor.dtype), tensor):
            raise StateMismatch(
                f"'{a.site.name}.{name}' is a buffer that was changed in training; only parameters can be loaded"
            )
