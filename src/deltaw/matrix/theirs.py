"""HF PEFT's cell for the same capability, found out by running PEFT (extra `peft`).

"yes" is granted generously: the call is there, it runs, and it has an effect. "no" comes with PEFT's own words.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import need
from ..spec import METHODS, Method
from ..testing.laws.base import gap, must
from ..testing.oracles import instances, oracle
from ..testing.tiny import WIDE, WIDTH, Experts, settle, values
from .cells import NO, YES, Cell

F32 = torch.float32


def config_of(method: Method) -> Any:
    """PEFT's configuration of a method of ours, from its oracle; None where PEFT (or the oracle) has none."""
    found = oracle(method.key)
    if hasattr(found, "peft_config"):
        return found.peft_config(method)
    if hasattr(found, "peft") and getattr(found, "IN_PEFT", True):
        return found.peft(method)[0]
    return None


class Net(nn.Module):
    """One layer of any kind called `lin`, which is what the oracles' configurations name."""

    def __init__(self, lin: nn.Module):
        super().__init__()
        self.lin = lin

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x)  # type: ignore[no-any-return]


def layer(kind: str) -> nn.Module:
    if kind == "Conv1D":
        return need("transformers.pytorch_utils", "train").Conv1D(WIDE, WIDTH)  # type: ignore[no-any-return]
    make: dict[str, Callable[[], nn.Module]] = {
        "Linear": lambda: nn.Linear(WIDTH, WIDE), "Conv2d": lambda: nn.Conv2d(WIDTH // 4, WIDE, 2),
        "Embedding": lambda: nn.Embedding(WIDTH, WIDE), "experts": lambda: Experts(WIDE, WIDTH),
    }  # fmt: skip
    return make[kind]()


def inputs(kind: str) -> Tensor:
    if kind == "Embedding":
        return torch.arange(12).reshape(4, 3)
    return values(*((2, WIDTH // 4, 5, 4) if kind == "Conv2d" else (4, 3, WIDTH)), name="x", dtype=F32)


def attached(config: Any, model: nn.Module | str) -> Any:
    model = settle(Net(layer(model)), F32) if isinstance(model, str) else model
    return pushed(need("peft", "peft").get_peft_model(model, copy.deepcopy(config)).eval(), "default")


def pushed(model: Any, name: str) -> Any:
    with torch.no_grad():
        for key, p in model.named_parameters():
            if p.requires_grad:
                p.add_(values(*p.shape, name=name + key, std=0.1, dtype=F32).to(p.dtype))
    return model


def pair(config: Any, kind: str) -> Any:
    model = attached(config, kind)
    model.add_adapter("b", copy.deepcopy(config))
    model.set_adapter("b")
    return pushed(model, "b").eval()


def alone(model: Any, x: Tensor, name: str | None) -> Tensor:
    if name is None:
        with model.disable_adapter():
            return model(x)  # type: ignore[no-any-return]
    model.set_adapter(name)
    return model(x)  # type: ignore[no-any-return]


def several(config: Any, kind: str) -> str | None:
    model, x = pair(config, kind), inputs(kind)
    ones = [alone(model, x, n) for n in (None, "default", "b")]
    model.base_model.set_adapter(["default", "b"])
    must(all(gap(model(x), y) > 1e-6 for y in ones), "the two together are one of them alone")
    return None


def rows(config: Any, kind: str) -> str | None:
    model, x, names = pair(config, kind), inputs(kind), ["default", None, "b", "default"]
    want = torch.cat([alone(model, x[k : k + 1], n) for k, n in enumerate(names)])
    must(gap(model(x, adapter_names=[n or "__base__" for n in names]), want) < 1e-4, "rows differ from each alone")
    return None


def merge(config: Any, kind: str) -> str | None:
    model, x = attached(config, kind), inputs(kind)
    y = model(x)
    must(gap(model.merge_and_unload()(x), y) < 1e-4, "the merged model gives something else")
    return None


def exact_lora(config: Any, kind: str) -> str | None:
    """Their conversion at rank 8, where nothing is lost by it."""
    model, x = attached(config, kind), inputs(kind)
    if config.peft_type == "LORA" and not config.use_dora and config.bias == "none":
        return "is one"
    wanted = model(x) - alone(model, x, None)
    model.set_adapter("default")
    _, state = need("peft.tuners.lora.conversion", "peft").convert_to_lora(model, rank=8)
    A, B = (next(t for k, t in state.items() if f"lora_{w}" in k) for w in "AB")
    must(gap(x @ A.mT @ B.mT, wanted) < 1e-4, "its conversion cuts: the outputs differ at rank 8")
    return None


def cut_lora(config: Any, kind: str) -> str | None:
    model = attached(config, kind)
    _, state = need("peft.tuners.lora.conversion", "peft").convert_to_lora(model, rank=2)
    must(bool(state), "nothing came out")
    return None


def weighted(config: Any, kind: str) -> str | None:
    model, x = pair(config, kind), inputs(kind)
    base = alone(model, x, None)
    model.add_weighted_adapter(["default", "b"], [0.5, 2.0], "c")
    must(gap(alone(model, x, "c"), base) > 1e-6, "no effect")
    return None


def quantised(config: Any) -> str | None:
    """On one of bitsandbytes' layers."""
    said: list[str] = []
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    for word in ("8", "4"):
        bnb = need("bitsandbytes", "bnb").nn
        kw: dict[str, Any] = {"has_fp16_weights": False} if word == "8" else {"compute_dtype": F32}
        lin = (bnb.Linear8bitLt if word == "8" else bnb.Linear4bit)(WIDTH, WIDE, **kw)
        lin.load_state_dict(settle(nn.Linear(WIDTH, WIDE), F32).state_dict())
        model = Net(lin.to("cpu"))
        for p in model.parameters():
            p.requires_grad_(False)
        setattr(model, f"is_loaded_in_{word}bit", True)
        x = inputs("Linear")
        base = model(x).detach()
        try:
            adapted = attached(config, model)
            must(gap(adapted(x), base) > 1e-4, "no effect")
        except Exception as why:
            said.append(str(why))
            continue
        return f"{word} bits"
    raise RuntimeError(said[0])


def at(config: Any, kind: str) -> str | None:
    model, x = settle(Net(layer(kind)), F32), inputs(kind)
    base = model(x).detach()
    if kind == "experts":
        config = copy.deepcopy(config)
        if not hasattr(config, "target_parameters"):
            raise TypeError(f"{type(config).__name__} has no target_parameters")
        config.target_modules, config.target_parameters = [], ["lin.stack"]
    adapted = attached(config, model)
    must(gap(adapted(x), base) > 1e-6, "no effect")
    adapted(x).square().sum().backward()
    return None


def linear_or_table(config: Any, run: Callable[[Any, str], str | None]) -> str | None:
    """On a linear layer; or, for what PEFT has for embeddings only, on one of these."""
    try:
        return run(config, "Linear")
    except Exception as why:
        try:
            note = run(config, "Embedding")
        except Exception:
            raise why from None
        return f"on embeddings{'; ' + note if note else ''}"


ON_ANY = {"several": several, "rows": rows, "merge": merge, "exact LoRA": exact_lora, "cut LoRA": cut_lora,
          "weighted sum": weighted}  # fmt: skip
COLUMNS: dict[str, Callable[[Any], str | None]] = {
    **{name: (lambda config, run=run: linear_or_table(config, run)) for name, run in ON_ANY.items()},
    "quantised": quantised,
    **{kind: (lambda config, kind=kind: at(config, kind)) for kind in ("Linear", "Conv1D", "Conv2d", "Embedding", "experts")},
}  # fmt: skip


def row(cls: type[Method]) -> dict[str, Cell] | None:
    """PEFT's cells for a method of ours, the first of whose instances that PEFT can do counts; None where it has none."""
    configs = [c for m in instances(cls) if (c := config_of(m)) is not None]
    if not configs:
        return None
    return {name: _first(configs, run) for name, run in COLUMNS.items()}


def _first(configs: list[Any], run: Callable[[Any], str | None]) -> Cell:
    found: list[Cell] = []
    for config in configs:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return Cell(YES, run(config) or "")
        except Exception as why:  # PEFT has no common error type
            found.append(Cell(NO, " ".join(str(why).split())[:300], type(why).__name__))
    return found[0]


def capabilities(keys: Iterable[str] | None = None) -> dict[str, dict[str, Cell]]:
    """{key: {column: Cell}} for every method whose oracle names PEFT's configuration."""
    rows_ = {key: row(METHODS[key]) for key in (METHODS if keys is None else keys)}
    return {key: found for key, found in rows_.items() if found is not None}
