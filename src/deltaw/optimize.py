"""An update rule over a model's own weights: training without an adapter."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .errors import SpecError
from .methods.update import UPDATES, About
from .sites import dense
from .sites.find import is_ours, output_head
from .spec import from_config


def optimizer(model: nn.Module, update: Any = "galore", lr: float = 1e-3, **kw: Any) -> torch.optim.Optimizer:
    """A torch optimiser over every parameter of `model` that requires a gradient, in place.

    update: a rule (`GaLore(r=0.25)`), its key, or its configuration. Matrices move by the rule, embeddings, the output head and
    everything else by AdamW, where the rule is one for matrices. kw goes to the rule's optimiser (weight_decay, seed).
    Its `in_backward()` steps inside the backward pass, so that the model's gradients never exist together.
    """
    if isinstance(update, (str, dict)):
        update = from_config(update, UPDATES)
    named = {k: p for k, p in model.named_parameters() if p.requires_grad and not is_ours(k)}
    if not named:
        raise SpecError("no parameter of this model requires a gradient: an adapter is attached, or it was frozen")
    # by identity: a tied table has the name that comes first, and DDP or torch.compile may stand around the model that knows its head
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    tables += [h for m in model.modules() if (h := output_head(m)) is not None]
    stored = {
        id(m.weight) for m in model.modules() if (site := dense.site("", m)) is not None and site.kind == "conv1d_hf"
    }
    lookups, turned = (
        frozenset(k for k, p in named.items() if id(p) in found)
        for found in ({id(getattr(m, "weight", None)) for m in tables}, stored)
    )
    about = About(lookups, turned=turned)
    made: torch.optim.Optimizer = update.optimizer(named, lr, about=about, **kw)
    return made
