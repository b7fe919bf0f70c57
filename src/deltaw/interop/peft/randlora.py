"""PEFT's RANDLORA."""

from __future__ import annotations

from typing import Any

from torch.nn.functional import pad

from ...errors import StateMismatch
from ...spec import Method
from .dialect import DENSE, Dialect, P, dialect, dialect_of, new, plain


@dialect
class RandLora(Dialect):
    """PEFT writes the two random bases once for the model and once more at every module; one copy is enough to read."""

    type = "RANDLORA"
    methods = ("randlora",)
    kinds = DENSE
    names = {"Lambda": "randlora_lambda", "Gamma": "randlora_gamma"}
    shared = {"model.A": "base_model.randlora_A", "model.B": "base_model.randlora_B"}
    dropout = "randlora_dropout"
    handled = frozenset({"r", "randlora_alpha", "projection_prng_key", "save_projection"})
    neutral = {"bias": ("none",)}
    ignored = frozenset({"fan_in_fan_out", "init_weights", "sparse", "very_sparse"})  # these say how the bases were drawn

    def fields(self, method: Any, p: P) -> dict[str, Any]:
        head = {"r": method.r, "randlora_alpha": plain(method.alpha), "projection_prng_key": method.seed}
        return head | {"save_projection": True}

    def method(self, f: dict[str, Any]) -> Method:
        alpha, seed = float(f.get("randlora_alpha", 640)), f.get("projection_prng_key", 0)
        return new("randlora", r=f.get("r", 32), alpha=alpha, seed=seed)

    def pack_shared(self, adapted: Any, state: P) -> P:
        """PEFT makes the bases for a module as high as the highest and as wide as the widest; what no module reads is 0."""
        out = super().pack_shared(adapted, state)
        if not out:
            return out
        A, B = (out[theirs] for theirs in self.shared.values())
        own = [a.site.shape for a in adapted.assignments if dialect_of(a.method) is self]
        m, n, r = max(s[0] for s in own), max(s[1] for s in own), A.shape[0]
        p, q = min(m, n), max(m, n)
        A = pad(A, (0, p - A.shape[1]))[:, None]
        B = pad(B, (0, 0, 0, -(-p // r) - B.shape[1], 0, q - B.shape[0]))
        return dict(zip(self.shared.values(), (A, B)))

    def unpack_shared(self, adapted: Any, t: P, state: P) -> P:
        A, B = (t[theirs] for theirs in self.shared.values())
        shapes = {k: state[k].shape for k in self.shared}
        (_, p), (q, N, _) = shapes["model.A"], shapes["model.B"]
        return {"model.A": A[:, 0, :p], "model.B": B[:q, :N]}

    def prepare(self, config: dict[str, Any], tensors: P, plan: Any, model: Any) -> Any:
        if not config.get("save_projection", True):
            raise StateMismatch(
                "adapter_config.json: save_projection = False leaves it to the reader to draw RandLoRA's bases, which PEFT "
                "does in bfloat16 or float16 depending on the machine. Save with save_projection=True where it was trained"
            )
        for word in ("A", "B"):
            for key in [k for k in tensors if k.endswith(f".randlora_{word}") and k.startswith("base_model.model.")]:
                if not tensors[key].equal(tensors.get(f"base_model.randlora_{word}", tensors[key])):
                    raise StateMismatch(f"'{key}' is another basis than base_model.randlora_{word}; all modules share one")
                del tensors[key]
        return plan
