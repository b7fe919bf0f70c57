"""Learning from the base itself: the model without the adapter is the teacher (PELA's intermediate phase)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .attach import Adapted, disabled
from .convert import site_delta
from .sites.find import blocks


def distil(adapted: Adapted, batch: Mapping[str, Any], *, features: float = 1.0, logits: float = 0.0, weights: float = 0.0, epsilon: float = 1e-3) -> tuple[Any, Tensor]:
    """(the output of the adapted model, what to add to its loss):

    features mean_l MSE(f_l, f_l of the teacher) + logits MSE(z, z of the teacher) + weights mean_sites (max_ij |W' - W|_ij - epsilon)².

    f_l is the output of the model's l-th repeated block; the teacher is the same model with the adapter disabled, in a second forward without
    gradient. Source: Guo et al. 2024 (PELA; its alpha, beta, w: 1, 0, 0 for images, 0.1, 0, 1 for ALBEF). Trap: the last term also pulls
    entries that are nearer than epsilon away from W; dropout makes the two differ.

    Shapes: every MSE is a mean over all numbers. Cost: one more forward, and m x n numbers a site where weights > 0.
    """
    model, places = adapted.model, list(blocks(adapted.model).values())
    seen: dict[bool, list[Tensor]] = {True: [], False: []}
    teaching = True

    def note(module: Any, args: Any, out: Any) -> None:
        seen[teaching].append(out[0] if isinstance(out, (tuple, list)) else out)

    hooks = [m.register_forward_hook(note) for m in places] if features else []
    try:
        with torch.no_grad(), disabled(model):
            wanted = model(**batch)
        teaching = False
        got = model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    mse = torch.nn.functional.mse_loss
    total = torch.zeros((), device=next(model.parameters()).device)
    if features:
        total = total + features * torch.stack([mse(a.float(), b.float()) for a, b in zip(seen[False], seen[True], strict=True)]).mean()
    if logits:
        total = total + logits * mse(got.logits.float(), wanted.logits.float())
    if weights:
        largest = [site_delta(adapted, a).dense().abs().max() for a in adapted.assignments]
        total = total + weights * torch.stack([(t - epsilon).square().to(total) for t in largest]).mean()
    return got, total
