"""PEFT's UNILORA."""

from __future__ import annotations

from typing import Any

import torch

from ...files.foreign import Inexpressible
from ...plan import Assignment
from ...spec import Method
from .dialect import DENSE, Dialect, P, dialect, dialect_of, new

THETA = "base_model.unilora_theta_d"


@dialect
class UniLora(Dialect):
    """Which entry of theta every entry of the factors reads is in the file (save_indices), or drawn by numpy."""

    type = "UNILORA"
    methods = ("uni_lora",)
    kinds = DENSE
    dropout = "unilora_dropout"
    handled = frozenset({"r", "theta_d_length", "proj_seed", "save_indices"})
    neutral = {"bias": ("none",)}
    ignored = frozenset({"fan_in_fan_out", "init_weights", "init_theta_d_bound"})

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        return {"r": method.r, "theta_d_length": method.d, "proj_seed": method.seed, "save_indices": True}

    def method(self, f: dict[str, Any]) -> Method:
        return new("uni_lora", r=f.get("r", 4), d=f.get("theta_d_length", 256), seed=f.get("proj_seed", 42))

    def pack(self, a: Assignment, p: P) -> P:
        return {}

    def unpack(self, a: Assignment, t: P, own: P) -> P:
        return {}

    def sites(self, adapted: Any, state: P) -> tuple[str, list[tuple[str, int, int]]]:
        """(our key of theta, [(site, r, n)])."""
        theta = [k for k in state if k.endswith(".theta")]
        if len(theta) != 1:
            raise Inexpressible(f"PEFT's UNILORA has one theta for all modules; found {len(theta)}")
        own = [a for a in adapted.assignments if f"{a.site.name}.I" in state and dialect_of(a.method) is self]
        return theta[0], [(a.site.name, state[f"{a.site.name}.I"].numel() // sum(a.site.shape), a.site.shape[1]) for a in own]

    def pack_shared(self, adapted: Any, state: P) -> P:
        theta, sites = self.sites(adapted, state)
        c, out = state[theta.replace(".theta", ".c")], {THETA: state[theta]}
        for name, r, n in sites:
            index = state[f"{name}.I"]
            for word, part in (("A", index[: r * n].reshape(r, n)), ("B", index[r * n :].reshape(-1, r))):
                out[f"base_model.model.{name}.unilora_indices_{word}"] = part
                out[f"base_model.model.{name}.unilora_scales_{word}"] = c[part]
        return out

    def unpack_shared(self, adapted: Any, t: P, state: P) -> P:
        theta, sites = self.sites(adapted, state)
        c, out = torch.zeros(len(t[THETA])), {theta: t[THETA]}
        for name, _, _ in sites:
            words = [f"base_model.model.{name}.unilora_{{}}_{word}" for word in "AB"]
            out[f"{name}.I"] = torch.cat([t[w.format("indices")].flatten().long() for w in words])
            c[out[f"{name}.I"]] = torch.cat([t[w.format("scales")].flatten().float() for w in words])
        return out | {theta.replace(".theta", ".c"): c}

    def prepare(self, config: dict[str, Any], tensors: P, plan: Any, model: Any) -> Any:
        if config.get("save_indices"):
            return plan
        import numpy

        r, d = config.get("r", 4), config.get("theta_d_length", 256)
        sites = [a.site for a in plan.resolve(model) if a.site.kind in self.kinds]
        shapes = {
            f"base_model.model.{s.name}.unilora_{{}}_{w}": shape
            for s in sites
            for w, shape in (("A", (r, s.shape[1])), ("B", (s.shape[0], r)))
        }
        total = sum(a * b for a, b in shapes.values())
        generator = numpy.random.default_rng(config.get("proj_seed", 42))  # the draws, and their order, are PEFT's
        index = numpy.repeat(numpy.arange(d), total // d)
        if total % d:
            index = numpy.concatenate([index, generator.choice(d, size=total % d, replace=False)])
        generator.shuffle(index)
        flat = torch.from_numpy(index)
        scale = torch.bincount(flat, minlength=d).float().rsqrt()
        for (key, (a, b)), part in zip(shapes.items(), flat.split([a * b for a, b in shapes.values()]), strict=True):
            tensors[key.format("indices")] = part.view(a, b)
            tensors[key.format("scales")] = scale[part].view(a, b)
        return plan
