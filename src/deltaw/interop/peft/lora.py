"""PEFT's LORA: lora, rslora, lora_fa, dora over each, trained biases, dropout; linear, Conv1D, convolutions and embeddings."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from ...errors import StateMismatch
from ...files.foreign import Inexpressible
from ...methods.init import INITS
from ...ops import factors
from ...plan import Assignment
from ...spec import Method, Start, Tensors, scale_of
from .dialect import DENSE, Dialect, P, bare, dialect, kernel_of, new, plain
from .variants import VARIANTS, common, variant_of

PLAIN = ("lora", "rslora", "lora_fa")  # W + s B A; which factors are trained is not in PEFT's files
SHIFTED = ("pissa", "olora")  # PEFT computes these again from the base when it loads, and moves the base
UNMOVED = (True, False, "gaussian", "orthogonal", "eva", "true", "True")  # starts that leave the base alone


@dialect
class Lora(Dialect):
    type = "LORA"
    methods = (*PLAIN, "dora", "bitfit", "alora", *VARIANTS)
    kinds = DENSE | {"conv", "embedding"}
    dropout = "lora_dropout"
    patterns = {"r": "rank_pattern", "lora_alpha": "alpha_pattern"}
    handled = frozenset(
        {"r", "lora_alpha", "use_rslora", "use_dora", "init_lora_weights", "kasa_config", "use_bdlora", "alora_invocation_tokens"}
    )
    neutral = {
        "bias": ("none", "lora_only"), "megatron_config": (None,), "layer_replication": (None,), "use_qalora": (False,),
        "lora_bias": (False,), "target_parameters": (None, []), "arrow_config": (None,),
        "velora_config": (None,),
        "monteclora_config": (None,), "loftq_config": ({}, None),
    }  # fmt: skip
    ignored = frozenset(
        {"megatron_core", "qalora_group_size", "eva_config", "corda_config", "lora_ga_config", "ensure_weight_tying",
         "fan_in_fan_out", "runtime_config"}
    )  # fmt: skip

    def fields(self, method: Method, p: P) -> dict[str, Any]:
        biases = method.key == "bitfit"
        method = method.inner if biases else method  # type: ignore[attr-defined]
        if method is None:
            raise Inexpressible("PEFT trains the biases of layers only beside a LoRA there")
        if method.key in VARIANTS:
            if biases:
                raise Inexpressible(f"PEFT's trained biases beside a {method.key} are not written here")
            return common(method) | VARIANTS[method.key].fields(method)
        inner: Any = method.inner if method.key == "dora" else method  # type: ignore[attr-defined]
        if inner.key not in (*PLAIN, "alora"):
            raise Inexpressible(f"PEFT has no DoRA over '{inner.key}'")
        if inner.key == "alora":
            if method is not inner or biases or not inner.invocation:
                raise Inexpressible("PEFT has an aLoRA with an invocation sequence, and no DoRA over it or biases beside it")
            return {"r": inner.r, "lora_alpha": plain(inner.alpha), "use_rslora": False, "use_dora": False,
                    "init_lora_weights": True, "bias": "none", "alora_invocation_tokens": list(inner.invocation)}  # fmt: skip
        r = inner.r + (p["offset.B"].shape[1] if "offset.B" in p else 0)
        alpha = inner.alpha * (math.sqrt(r / inner.r) if inner.key == "rslora" else r / inner.r)
        return {"r": r, "lora_alpha": plain(alpha), "use_rslora": inner.key == "rslora", "use_dora": method.key == "dora",
                "init_lora_weights": True, "bias": "lora_only" if biases else "none"}  # fmt: skip

    def check(self, adapted: Any, config: dict[str, Any]) -> None:
        if (v := variant_of(config)) is not None:
            v.check(adapted, config)

    def method(self, f: dict[str, Any]) -> Method:
        if (v := variant_of(f)) is not None:
            if f.get("bias") == "lora_only":
                raise StateMismatch(f"adapter_config.json: bias='lora_only' together with {v.word} is not supported")
            return v.method(f)
        if words := f.get("alora_invocation_tokens"):
            if f.get("use_rslora") or f.get("use_dora") or f.get("bias") == "lora_only":
                raise StateMismatch("adapter_config.json: alora_invocation_tokens with use_rslora, use_dora or bias is not supported")
            return new("alora", r=f.get("r", 8), alpha=f.get("lora_alpha", 8), invocation=tuple(words))
        inner = new("rslora" if f.get("use_rslora") else "lora", r=f.get("r", 8), alpha=f.get("lora_alpha", 8))
        inner = new("dora", inner=inner) if f.get("use_dora") else inner
        return new("bitfit", inner=inner) if f.get("bias") == "lora_only" else inner

    def refusal(self, a: Assignment) -> str | None:
        if bare(a.method)[0].key in VARIANTS and a.site.kind != "linear":
            return f"PEFT's LORA has no {bare(a.method)[0].key} of a {a.site.kind} that is read here"
        if a.site.kind == "conv":
            c: Any = a.site.module
            if c.groups > 1 or any(d != 1 for d in c.dilation) or c.padding_mode != "zeros":
                return "PEFT's LoRA of a convolution with groups, dilation or padding other than zeros is another map"
        if a.flip and a.method.key not in PLAIN:
            return f"PEFT cannot tie {a.method.key} at an embedding and its head"
        return super().refusal(a)

    def pack(self, a: Assignment, p: P) -> P:
        if a.method.key in VARIANTS:
            return VARIANTS[a.method.key].pack(p)
        A, B, s = p["A"], p["B"], scale_of(a.method)
        if "offset.B" in p:  # the constant of a shifted start, or of restarts, as more ranks
            A, B = torch.cat([A, p["offset.A"]]), torch.cat([B, p["offset.B"] / s], 1)
        if a.flip:
            A, B = B.mT, A.mT
        if a.site.kind == "embedding":
            out = {"lora_embedding_A": A, "lora_embedding_B": B}
        elif a.site.kind == "conv":
            kernel = kernel_of(a)[1:]
            ones = (1,) * (len(kernel) - 1)
            out = {"lora_A.weight": A.reshape(-1, *kernel), "lora_B.weight": B.reshape(*B.shape, *ones)}
        else:
            out = {"lora_A.weight": A, "lora_B.weight": B}
        if "g" in p:
            ones = (1,) * (len(kernel_of(a)) - 2) if a.site.kind == "conv" else ()
            out["lora_magnitude_vector"] = p["g"].reshape(1, -1, *ones) if ones else p["g"]
        if "bias" in p:
            out["base_layer.bias"] = p["bias"]
        return out

    def unpack(self, a: Assignment, t: P, own: P) -> P:
        if a.method.key in VARIANTS:
            return VARIANTS[a.method.key].unpack(a, t, own)
        word = "lora_embedding_{}" if a.site.kind == "embedding" else "lora_{}.weight"
        A, B = t[word.format("A")].flatten(1), t[word.format("B")].flatten(1)
        r = own["A"].shape[0]
        out = {"A": A[:r], "B": B[:, :r]}
        if "offset.B" in own:
            out |= {"offset.A": A[r:], "offset.B": B[:, r:] * scale_of(a.method)}
        if "g" in own:
            out["g"] = t["lora_magnitude_vector"].flatten()
        if "bias" in own:
            out["bias"] = t["base_layer.bias"]
        return out

    def prepare(self, config: dict[str, Any], tensors: P, plan: Any, model: Any) -> Any:
        if (v := variant_of(config)) is not None:
            return v.placed(config, plan, model)
        start = config.get("init_lora_weights", True)
        if start in UNMOVED:
            return plan
        if start not in SHIFTED:
            raise StateMismatch(
                f"adapter_config.json: init_lora_weights = {start!r} moves the base weights in a way that is not in the file. "
                "Convert it where it was trained: PEFT's save_pretrained(path_initial_model_for_weight_conversion=...)"
            )
        if config.get("use_dora"):
            raise StateMismatch(f"adapter_config.json: use_dora with init_lora_weights = {start!r} is not supported")
        plan = replace(plan, init=INITS[start]())
        for a in plan.resolve(model):
            if a.site.kind in self.kinds and a.method.key in self.methods:
                _stack(a, tensors, plan.init, self)
        return plan


def _stack(a: Assignment, tensors: P, init: Any, d: Lora) -> None:
    """Put the constant that PEFT recomputes from the base beside the factors of the file."""
    prefix = f"base_model.model.{a.site.name}."
    word = "lora_embedding_{}" if a.site.kind == "embedding" else "lora_{}.weight"
    keys = [prefix + word.format(w) for w in "AB"]
    if any(k not in tensors for k in keys):
        return  # reported as missing later
    A, B = (tensors[k].flatten(1).clone() for k in keys)
    W = a.site.leaf().op
    p = Tensors(A=torch.zeros_like(A), B=torch.zeros_like(B))
    with torch.no_grad():
        offset = init.fill(Start(a.site.name, a.site.kind, W, 0, a.method), p, {})
    pair = factors(offset)
    assert pair is not None
    packed = d.pack(a, {"A": A, "B": B, "offset.B": pair[0], "offset.A": pair[1]})
    tensors.update({prefix + k: v.to(tensors[prefix + k].dtype) for k, v in packed.items()})
