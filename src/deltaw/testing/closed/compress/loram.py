"""LoRAM's recovery entry by entry."""

from __future__ import annotations

import torch

from ....methods.compress.indices import IndexMap
from ....methods.compress.loram import LoRAM
from ...laws.base import must, same
from ...tiny import values


def check() -> str:
    W, rows, columns = values(9, 7, name="W"), torch.tensor([0, 3, 8]), torch.tensor([1, 2, 6])
    B, A = values(3, 2, name="B"), values(2, 3, name="A")
    mapped = IndexMap((9, 7), rows, columns)
    b, a = LoRAM().recover((B, A), mapped)
    new = W + 1.5 * b @ a
    for i in range(9):
        for j in range(7):
            inside = i in rows.tolist() and j in columns.tolist()
            want = W[i, j] + (1.5 * B[rows.tolist().index(i)] @ A[:, columns.tolist().index(j)] if inside else 0.0)
            must(abs(float(new[i, j] - want)) < 1e-12, f"entry {i}, {j}")
    same("restrict after embed", mapped.factors((b, a))[0], B)
    same("restrict after embed", mapped.factors((b, a))[1], A)
    n, m = LoRAM("normal").recover((B, A), mapped)
    same("B is the same", n, b)
    must(bool((m != 0).all()) and torch.equal(m[:, columns], A), "A's new columns are drawn, the others kept")
    return "63 entries; both ways"
