"""Variants of PEFT's LORA that are methods of their own here: one small table each, asked by lora.py."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, ClassVar

from ...errors import StateMismatch
from ...files.foreign import Inexpressible
from ...plan import Assignment
from ...spec import Method, Start
from .dialect import P, new, plain


class Variant:
    """fields: PEFT's besides r and alpha. mine: whether a configuration is of this variant."""

    key: ClassVar[str]
    word: ClassVar[str]  # PEFT's field that turns it on
    names: ClassVar[dict[str, str]] = {"A": "lora_A.weight", "B": "lora_B.weight"}

    def fields(self, method: Any) -> dict[str, Any]:
        return {}

    def mine(self, f: dict[str, Any]) -> bool:
        return bool(f.get(self.word))

    def extra(self, f: dict[str, Any]) -> dict[str, Any]:
        return {}

    def method(self, f: dict[str, Any]) -> Method:
        for other in ("use_rslora", "use_dora"):
            if f.get(other):
                raise StateMismatch(f"adapter_config.json: {other} together with {self.word} is not supported")
        return new(self.key, r=f.get("r", 8), alpha=f.get("lora_alpha", 8), **self.extra(f))

    def check(self, adapted: Any, config: dict[str, Any]) -> None: ...

    def pack(self, p: P) -> P:
        return {theirs: p[ours].flatten(0, -2) if p[ours].dim() == 3 else p[ours] for ours, theirs in self.names.items()}

    def unpack(self, a: Assignment, t: P, own: P) -> P:
        return {ours: t[theirs].reshape(own[ours].shape) for ours, theirs in self.names.items()}

    def placed(self, config: dict[str, Any], plan: Any, model: Any) -> Any:
        return plan


class Mica(Variant):
    key, word = "mica", "init_lora_weights"

    def fields(self, method: Any) -> dict[str, Any]:
        return {"init_lora_weights": "mica"}

    def mine(self, f: dict[str, Any]) -> bool:
        return bool(f.get(self.word) == "mica")


class Kasa(Variant):
    """PEFT cuts the noise out of its base when it loads; here it is made from the same base."""

    key, word = "kasa", "kasa_config"
    names = {**Variant.names, "d": "lora_diag"}

    def fields(self, method: Any) -> dict[str, Any]:
        return {"kasa_config": {"beta": 1e-4, "gamma": 1e-3}}

    def unpack(self, a: Assignment, t: P, own: P) -> P:
        start, declared = Start(a.site.name, a.site.kind, a.site.leaf().op), a.method.declare(a.site)
        noise: P = {}
        for word in ("U0", "V0"):
            p: Any = declared[word]
            noise[word] = p.init(start, p.shape).detach().to(own[word].dtype).contiguous()
        return super().unpack(a, t, own) | noise


class BdLora(Variant):
    """PEFT finds the side of a layer by words in its name."""

    key, word = "bd_lora", "use_bdlora"

    def fields(self, method: Any) -> dict[str, Any]:
        return {"use_bdlora": {"nblocks": method.nblocks}, "side": method.side}

    def extra(self, f: dict[str, Any]) -> dict[str, Any]:
        return {"nblocks": f["use_bdlora"].get("nblocks", 1)}

    def check(self, adapted: Any, config: dict[str, Any]) -> None:
        sites = {a.site.name: a.method.inner if a.method.key == "drop" else a.method for a in adapted.assignments}
        sides = {n: m.side for n, m in sites.items() if m.key == self.key}
        words: dict[str, Any] = {"A": [], "B": []}
        for side in "AB":
            words[side] = sorted({n.rpartition(".")[2] for n, s in sides.items() if s == side})
        if odd := [n for n, s in sides.items() if any(w in n for w in words["B" if s == "A" else "A"])]:
            raise Inexpressible(f"{odd[0]}: PEFT's BD-LoRA cannot tell its side by words in its name")
        config["use_bdlora"] = {
            "target_modules_bd_a": words["A"], "target_modules_bd_b": words["B"], "match_strict": True,
            **config["use_bdlora"],
        }  # fmt: skip

    def placed(self, config: dict[str, Any], plan: Any, model: Any) -> Any:
        table, overrides = config["use_bdlora"], dict(plan.overrides)
        for a in plan.resolve(model):
            method: Any = a.method.inner if a.method.key == "drop" else a.method  # type: ignore[attr-defined]
            if method.key != self.key:
                continue
            hit = [s for s in "AB" if any(w in a.site.name for w in table.get(f"target_modules_bd_{s.lower()}") or ())]
            if len(hit) != 1:
                raise StateMismatch(
                    f"adapter_config.json: use_bdlora: {a.site.name} is in {len(hit)} of target_modules_bd_a and "
                    "target_modules_bd_b; it has to be in one (plain LoRA beside block-diagonal ones is not supported)"
                )
            mine = replace(method, side=hit[0])
            overrides[f"^{re.escape(a.site.name)}"] = mine if method is a.method else replace(a.method, inner=mine)  # type: ignore[type-var]
        return replace(plan, overrides=overrides)


VARIANTS: dict[str, Variant] = {v.key: v for v in (Mica(), Kasa(), BdLora())}


def variant_of(f: dict[str, Any]) -> Variant | None:
    return next((v for v in VARIANTS.values() if v.mine(f)), None)


def common(method: Any) -> dict[str, Any]:
    return {"r": method.r, "lora_alpha": plain(method.alpha), "use_rslora": False, "bias": "none", "use_dora": False, "init_lora_weights": True}
