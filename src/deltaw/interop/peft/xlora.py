"""PEFT's XLORA: the classifier here, the experts as LoRA adapters of their own in experts/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import StateMismatch
from ...files.disk import json_writer, tensors_writer
from ...files.foreign import FOREIGN, Inexpressible
from ...plan import Assignment
from ...route import route
from ...spec import Method
from .dialect import DENSE, Dialect, P, dialect, new

CLASSIFIER = "base_model.internal_xlora_classifier.layers.0."


@dialect
class Xlora(Dialect):
    """PEFT finds the experts by the paths in `adapters`, which are absolute: after moving a directory, correct them.
    Our own reading does not use them."""

    type = "XLORA"
    methods = ("xlora",)
    kinds = DENSE | {"embedding"}
    apart = frozenset({"A", "B"})
    targets = False
    shared = {"model.V": CLASSIFIER + "weight", "model.c": CLASSIFIER + "bias"}
    handled = frozenset({"adapters", "hidden_size", "softmax_temperature", "global_scaling_weight", "top_k_lora", "enable_softmax", "enable_softmax_topk"})
    neutral = {
        "xlora_depth": (1,), "layerwise_scalings": (False,),
        "use_trainable_adapters": (False,), "scaling_pass_value": (0.0,),
    }  # fmt: skip
    ignored = frozenset({"xlora_size", "xlora_dropout_p"})  # of a deeper classifier

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        if method.scope != "model":
            raise Inexpressible("PEFT's layer-wise scalings come from one classifier; here every site has its own")
        if method.depth != 1:
            raise Inexpressible("files of PEFT's X-LoRA are read and written at depth 1 only")
        return {"hidden_size": method.hidden_size, "softmax_temperature": method.tau, "enable_softmax": method.softmax, "enable_softmax_topk": method.again,
                "global_scaling_weight": method.gamma, "top_k_lora": method.top_k or None, "xlora_depth": 1,
                "layerwise_scalings": False, "xlora_dropout_p": 0.0, "scaling_pass_value": 0.0}  # fmt: skip

    def method(self, f: dict[str, Any]) -> Method:
        return new("xlora", hidden_size=f.get("hidden_size", 4096), tau=f.get("softmax_temperature", 1.0),
                   gamma=f.get("global_scaling_weight", 1.0), top_k=f.get("top_k_lora") or 0,
                   softmax=f.get("enable_softmax", True), again=f.get("enable_softmax_topk", False))  # fmt: skip

    def refusal(self, a: Assignment) -> str | None:
        if not a.site.name.startswith("model."):
            return "PEFT reads experts of models whose layers are under 'model.' only"
        return super().refusal(a)

    def pack(self, a: Assignment, p: P) -> P:
        return {}

    def unpack(self, a: Assignment, t: P, own: P) -> P:
        return {}

    def config(self, adapted: Any, fields: dict[str, Any], directory: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        peft, state, files = FOREIGN["peft"], adapted.state(), {}
        if any(a.site.kind == "module" or a.method.key != "xlora" for a in adapted.assignments):
            raise Inexpressible("PEFT trains nothing beside an X-LoRA")
        adapters = {}
        for k in range(len(adapted.plan.method.ranks)):
            factors = {}
            for a in adapted.assignments:
                start, r = sum(a.method.ranks[:k]), a.method.ranks[k]
                A, B = state[f"{a.site.name}.A"], state[f"{a.site.name}.B"]
                if r:
                    factors[a.site.name] = (B[:, start : start + r], A[start : start + r])
            config, tensors = peft.plain_lora(adapted, factors)
            folder = f"experts/{k}"
            files[f"{folder}/adapter_model.safetensors"] = tensors_writer(tensors)
            files[f"{folder}/{peft.config_name}"] = json_writer(config)
            adapters[str(k)] = str(Path(directory).resolve() / folder)
        return {**fields, "adapters": adapters}, files

    def from_files(self, saved: Any, model: Any) -> Any:
        classifier = saved.tensors.get(CLASSIFIER + "weight")
        if classifier is None:
            raise StateMismatch(
                f"'{CLASSIFIER}weight' is missing. PEFT 0.21.2 loses it when it saves an X-LoRA of depth 1: the '.0.' in the "
                "key is taken for the name of expert 0"
            )
        found: dict[str, Path] = {}
        for name, path in (saved.config.get("adapters") or {}).items():
            places = [Path(path), saved.path / path, saved.path / "experts" / Path(path).name]
            there = [p for p in places if p.is_dir()]
            if not there:
                raise StateMismatch(f"adapter_config.json: expert '{name}' is at {path}, which is no directory here")
            found[name] = there[0]
        if not found:
            raise StateMismatch("adapter_config.json: 'adapters' names no expert")
        temporary = route(model, found, self.method(saved.config), name="xlora__experts")
        try:
            saved.exact.update({k: v.clone() for k, v in temporary.state().items() if k.endswith((".A", ".B"))})
            plan: Any = temporary.plan
        finally:
            temporary.detach()
        if classifier.shape[-1] != plan.method.hidden_size:
            raise StateMismatch(
                f"'{CLASSIFIER}weight' reads {classifier.shape[-1]} numbers; the hidden states here have {plan.method.hidden_size}"
            )
        return plan
