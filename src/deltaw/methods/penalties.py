"""Terms of a loss that papers put beside a structure; they look at trained tensors by name and know no method."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def orthonormality(trained: Mapping[str, Tensor], columns: str = "P", rows: str = "Q") -> Tensor:
    """The mean of |PᵀP - I|_F and |Q Qᵀ - I|_F (not squared) over all tensors "SITE.P" and "SITE.Q": adapted.trainable()."""
    found = []
    for name, t in trained.items():
        word = name.rpartition(".")[2]
        if word in (columns, rows):
            gram = t.mT @ t if word == columns else t @ t.mT
            found.append(torch.linalg.matrix_norm(gram - torch.eye(len(gram), dtype=t.dtype, device=t.device)))
    return torch.stack(found).mean() if found else torch.zeros(())
