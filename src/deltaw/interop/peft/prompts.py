"""PEFT's prompts: PROMPT_TUNING, P_TUNING, PREFIX_TUNING, CARTRIDGE, MULTITASK_PROMPT_TUNING, CPT; and ADAPTION_PROMPT.

PEFT stores what a reparametrisation gives and not the network behind it: a P-tuning is read as the prompt that it makes, a
projected prefix as its keys and values. Our own files keep the network beside them, to the last bit.
"""

from __future__ import annotations

from typing import Any

import torch

from ...entry import make
from ...errors import StateMismatch
from ...files.foreign import Inexpressible
from ...plan import Assignment, Plan
from ...sites.find import find, layer_index
from ...spec import Method, Start
from .dialect import Dialect, P, dialect, new

WORD = "prompt_embeddings"
CAUSAL = "CAUSAL_LM"


class Prompt(Dialect):
    """One tensor, without the name of a module in front."""

    kinds = frozenset({"prefix"})
    targets = False
    alone = True
    cache = False  # keys and values, not soft tokens
    handled = frozenset({"num_virtual_tokens"})
    neutral = {"num_transformer_submodules": (None, 1)}
    ignored = frozenset({"token_dim", "num_attention_heads", "num_layers", "encoder_hidden_size"})

    def config(self, adapted: Any, fields: dict[str, Any], directory: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        site = adapted.assignments[0].site
        if len(adapted.assignments) > 1:
            raise Inexpressible("PEFT trains nothing beside a prompt")
        if not type(adapted.model).__name__.endswith(("ForCausalLM", "LMHeadModel")):
            raise Inexpressible(f"PEFT's prompts are written for causal language models, not for a {type(adapted.model).__name__}")
        width, heads = (site.heads * site.size, site.heads) if self.cache else (site.shape[1], None)
        sizes = {"token_dim": width, "num_attention_heads": heads, "num_layers": site.layers, "num_transformer_submodules": 1}
        return {**fields, **sizes}, {}

    def from_files(self, saved: Any, model: Any) -> Any:
        found = saved.tensors.get(WORD)
        if found is None or found.dim() != 2:
            raise StateMismatch(f"'{WORD}' is missing, or no matrix; this is no file of PEFT's {self.type}")
        if saved.config.get("task_type") != CAUSAL:
            raise StateMismatch(
                f"adapter_config.json: task_type {saved.config.get('task_type')!r}: prompts are read for {CAUSAL} only"
            )
        return Plan(self.method(saved.config | {"num_virtual_tokens": len(found)}))

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        return {"num_virtual_tokens": method.v}

    def soft(self, a: Assignment, p: P) -> torch.Tensor:
        """The prompt as the method makes it."""
        from ...spec import Tensors

        L: Any = a.method.layer(a.site.leaf(), Tensors(False, **p))
        found: torch.Tensor = L.kv if self.cache else L.tokens
        return found

    def pack(self, a: Assignment, p: P) -> P:
        return {WORD: self.soft(a, p).detach()}

    def unpack(self, a: Assignment, t: P, own: P) -> P:
        return {}  # a network cannot be had back from what it makes


@dialect
class PromptTuning(Prompt):
    type = "PROMPT_TUNING"
    methods = ("prompt_tuning",)
    names = {"P": WORD}
    ignored = Prompt.ignored | {"prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"}

    def method(self, f: dict[str, Any]) -> Method:
        return new("prompt_tuning", v=f["num_virtual_tokens"])

    def unpack(self, a: Assignment, t: P, own: P) -> P:
        return {"P": t[WORD]}


@dialect
class PTuning(Prompt):
    type = "P_TUNING"
    methods = ("p_tuning",)
    ignored = Prompt.ignored | {"encoder_reparameterization_type", "encoder_num_layers", "encoder_dropout"}

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        return {"num_virtual_tokens": method.v, "encoder_reparameterization_type": "MLP", "encoder_hidden_size": len(p["b1"])}

    def method(self, f: dict[str, Any]) -> Method:
        return new("prompt_tuning", v=f["num_virtual_tokens"])


@dialect
class PrefixTuning(Prompt):
    type = "PREFIX_TUNING"
    methods = ("prefix_tuning",)
    cache = True
    handled = frozenset({"num_virtual_tokens", "prefix_projection"})
    ignored = Prompt.ignored | {"init_weights"}

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        return {"num_virtual_tokens": method.v, "prefix_projection": bool(method.h), "encoder_hidden_size": method.h or None}

    def method(self, f: dict[str, Any]) -> Method:
        return new("prefix_tuning", v=f["num_virtual_tokens"], h=0)

    def unpack(self, a: Assignment, t: P, own: P) -> P:
        return {} if a.method.h else {"E": t[WORD]}  # type: ignore[attr-defined]


@dialect
class Cartridge(Prompt):
    type = "CARTRIDGE"
    methods = ("cartridge",)
    cache = True
    handled = frozenset({"num_virtual_tokens", "num_frozen_tokens"})

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        return {"num_virtual_tokens": method.v, "num_frozen_tokens": method.f}

    def method(self, f: dict[str, Any]) -> Method:
        return new("cartridge", v=f["num_virtual_tokens"], f=f.get("num_frozen_tokens", 1))

    def unpack(self, a: Assignment, t: P, own: P) -> P:
        f = a.method.f  # type: ignore[attr-defined]
        return {"Z": t[WORD][f:]} | ({"Z0": t[WORD][:f]} if f else {})


@dialect
class Multitask(Prompt):
    type = "MULTITASK_PROMPT_TUNING"
    methods = ("mpt",)
    names = {"P": WORD, "u": "prefix_task_cols", "w": "prefix_task_rows"}
    handled = frozenset({"num_virtual_tokens", "num_tasks", "num_ranks"})
    ignored = PromptTuning.ignored | {"prompt_tuning_init_state_dict_path", "prompt_tuning_init_task"}

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        return {"num_virtual_tokens": method.v, "num_tasks": method.tasks, "num_ranks": method.rho}

    def method(self, f: dict[str, Any]) -> Method:
        return new("mpt", v=f["num_virtual_tokens"], tasks=f.get("num_tasks", 1), rho=f.get("num_ranks", 1))

    def pack(self, a: Assignment, p: P) -> P:
        return {self.names[k]: v for k, v in p.items()}

    def unpack(self, a: Assignment, t: P, own: P) -> P:
        return {k: t[word] for k, word in self.names.items()}


@dialect
class Cpt(Prompt):
    type = "CPT"
    methods = ("cpt",)
    handled = frozenset(
        {"num_virtual_tokens", "cpt_token_ids", "cpt_tokens_type_mask", "opt_projection_epsilon", "opt_projection_format_epsilon"}
    )
    ignored = Prompt.ignored | {"cpt_mask", "opt_weighted_loss_type", "opt_loss_decay_factor", "tokenizer_name_or_path"}

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        ids = list(method.ids)
        return {
            "num_virtual_tokens": len(ids), "cpt_token_ids": ids, "cpt_tokens_type_mask": list(method.types) or [1] * len(ids),
            "cpt_mask": [1] * len(ids), "opt_projection_epsilon": method.eps, "opt_projection_format_epsilon": method.eps_format,
        }  # fmt: skip

    def method(self, f: dict[str, Any]) -> Method:
        return new("cpt", ids=tuple(f["cpt_token_ids"]), types=tuple(f.get("cpt_tokens_type_mask") or ()),
                   eps=f.get("opt_projection_epsilon", 0.1), eps_format=f.get("opt_projection_format_epsilon", 0.1))  # fmt: skip

    def unpack(self, a: Assignment, t: P, own: P) -> P:
        """The frozen embeddings are the table's; the rest has been trained."""
        start, declared = Start(a.site.name, a.site.kind, a.site.leaf().op, 0, a.method), a.method.declare(a.site)
        E, e = (make(declared[k], declared[k].shape, start, k, False) for k in "Ee")  # type: ignore[union-attr,arg-type]
        return {"E": E, "e": e, "D": t[WORD].to(E) - E}


@dialect
class Adaption(Dialect):
    type = "ADAPTION_PROMPT"
    methods = ("adaption_prompt",)
    kinds = frozenset({"attention"})
    targets = False
    names = {"P": "adaption_prompt", "g": "adaption_gate"}
    handled = frozenset({"adapter_len", "adapter_layers"})

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        return {"adapter_len": method.v}

    def method(self, f: dict[str, Any]) -> Method:
        return new("adaption_prompt", v=f["adapter_len"])

    def refusal(self, a: Assignment) -> str | None:
        if getattr(a.site.module.o_proj, "bias", None) is not None:
            return "PEFT's ADAPTION_PROMPT adds the bias of the output projection a second time"
        return super().refusal(a)

    def pack(self, a: Assignment, p: P) -> P:
        return {"adaption_prompt": p["P"][None], "adaption_gate": p["g"]}

    def config(self, adapted: Any, fields: dict[str, Any], directory: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        names = [a.site.name for a in adapted.assignments]
        word = names[0].rpartition(".")[2]
        top = [n for n, _ in adapted.model.named_modules() if n.endswith(f".{word}")][-len(names) :]
        if names != top or len({a.method for a in adapted.assignments}) > 1:
            raise Inexpressible("PEFT puts one ADAPTION_PROMPT on the attention of the top layers, and trains nothing beside it")
        if getattr(getattr(adapted.model, "config", None), "model_type", "") not in ("llama", "mistral"):
            raise Inexpressible("PEFT knows ADAPTION_PROMPT for Llama and Mistral, and for GPT-2 in another form, only")
        return {**fields, "adapter_layers": len(names), "target_modules": word}, {}

    def from_files(self, saved: Any, model: Any) -> Any:
        word = saved.config.get("target_modules") or "self_attn"
        sites = find(model, [word], sort="attention")
        count = saved.config.get("adapter_layers")
        if not isinstance(count, int) or not 0 < count <= len(sites):
            raise StateMismatch(f"adapter_config.json: adapter_layers = {count!r}; this model has {len(sites)} attention layers")
        return Plan(self.method(saved.config), targets=[word], layers=[layer_index(s.name) for s in sites[-count:]])
