"""Frozen frames read from W, for methods that train little between them (no method imports another)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ShapeError
from ..spec import Declared, Param, last


def fits(what: str, r: int, m: int, n: int) -> None:
    """Raise the named error unless an m x n weight has r directions."""
    if not isinstance(r, int) or not 1 <= r <= min(m, n):
        raise ShapeError(f"{what} = {r} directions of a {m} x {n} weight were asked for; use 1 <= {what} <= {min(m, n)}")


def singular(what: str, r: int, m: int, n: int) -> Declared:
    """U (m, r) and Vt (r, n), frozen: the leading singular vectors of W, as columns and as rows."""
    fits(what, r, m, n)
    return {
        "U": Param((m, r), last(lambda start, _: start.svd(r)[0]), train=False),
        "Vt": Param((r, n), last(lambda start, _: start.svd(r)[2]), train=False),
    }


def pivoted_qr(W: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """(Q (m, r), R (r, n), J (r,)): r steps of the QR decomposition with column pivoting, in float64.

    W = Q R at r = min(m, n), in W's own order of columns; R[:, J] is triangular, with a diagonal that falls.
    torch has no pivoted QR: this is Gram-Schmidt, which takes the largest remaining column and cleans it twice, for one
    product with W a step; the sizes of what remains are counted down, as LAPACK does.
    """
    W = W.to(torch.float64)
    size, Q, rows, picked = W.square().sum(0), W.new_zeros(len(W), r), list[Tensor](), list[int]()
    none = 1e-13 * size.max().sqrt() + torch.finfo(W.dtype).tiny
    for i in range(r):
        size[picked] = -1.0  # beyond W's rank nothing is left: columns are picked all the same, each once, with q = 0
        j = int(size.argmax())
        q = W[:, j] - Q @ (Q.mT @ W[:, j])
        left = torch.linalg.vector_norm(q)
        q = q / left if left > none else torch.zeros_like(q)
        q = q - Q @ (Q.mT @ q)
        q = q / torch.linalg.vector_norm(q).clamp_min(torch.finfo(q.dtype).tiny)
        row = q @ W
        row[picked] = 0.0
        size = (size - row.square()).clamp_min(0.0)
        Q[:, i] = q
        rows.append(row)
        picked.append(j)
    return Q, torch.stack(rows), torch.tensor(picked, device=W.device)


def energy_rank(W: Tensor, tau: float = 0.9) -> int:
    """The smallest r whose pivoted QR keeps the share tau of sum R_ii²."""
    _, R, J = pivoted_qr(W, min(W.shape))
    kept = R[:, J].diagonal().square().cumsum(0)
    return min(int((kept < tau * kept[-1]).sum()) + 1, min(W.shape))
