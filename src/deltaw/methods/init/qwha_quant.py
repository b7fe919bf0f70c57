"""QWHA's start on a quantised base: where coefficients stand, and what they are, from what the quantiser has lost."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...errors import SpecError
from ...spec import Start, Tensors
from ..rank.allocators import floors
from ..transforms import Walsh
from . import init, innermost


@init(
    paper="arXiv:2509.17428",
    needs=("weight", "original", "inputs"),
    start="none: step 0 is nearer to the original outputs than the quantised base",
    fills=("c", "I"),
    structure="qwha",
)
class QWHAQuant:
    """E = W0 - Q, Z = E H (then E = Z Hᵀ / n exactly). K places: row i gets k_i ~ |Z_i|^a of them (rounded down, at most n; the rest to
    rows with room, the smallest first), at the k_i largest Z_ij² (Hᵀ M H)_jj, M = XᵀX + damp mean(diag) I. Their values minimise
    |(e_i - (H / n)_S z) M^(1/2)|: a least-squares problem a row, in float64, rows with equal k_i together. c = z sqrt(m) / s. Structure: qwha.

    Q is the base as the model has it, W0 the original ("original" of deltaw.probe), M its inputs. Source: Jeon et al. 2025 and its code (a 1,
    damp 1e-4; the code calibrates on its test split: use training data).
    """

    a: float = 1.0
    damp: float = 1e-4

    def fill(self, start: Start, p: Tensors, stats: dict[str, Tensor]) -> None:
        if not {"c", "I"} <= set(vars(p)):
            raise SpecError(f"{start.name}: qwha_quant sets c and I of the structure qwha; {start.method} has none")
        E = (stats["original"].to(p.c.device) - start.dense().to(p.c.device)).double()
        m, n = E.shape
        M = stats["inputs"].to(E)
        M = M + self.damp * M.diagonal().mean() * torch.eye(n).to(E)
        H = Walsh(n, E[:0]).dense().to(E) if n else E
        Z, G = E @ H, H.mT @ M @ H / n**2
        counts = floors(Z.norm(dim=1) ** self.a, len(p.c), n)
        score = Z.square() * G.diagonal()
        places, values = [], []
        right = E @ M @ H / n
        order = score.argsort(dim=1, descending=True, stable=True)
        for i in range(m):
            S = order[i, : counts[i]].sort().values
            places.append(i * n + S)
            values.append(torch.linalg.solve(G[S][:, S], right[i, S]) if len(S) else right[i, S])
        p.I.copy_(torch.cat(places))
        p.c.copy_(torch.cat(values) * math.sqrt(m) / innermost(start.method).s)  # type: ignore[attr-defined]
