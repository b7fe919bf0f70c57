"""LoSiA's moves by hand: whose turn it is, importances, the best of three blocks by sums in lists, the slow start."""

from __future__ import annotations

import torch
from torch import Tensor

from ....methods.structure.losia import LoSiA
from ...laws.base import close, must
from ..entries import SIZES, Entries

P, T, BETA, STEPS = 0.5, 3, 0.85, 14


def best(count: int, sums: list[float]) -> list[int]:
    return sorted(sorted(range(len(sums)), key=lambda i: -sums[i])[:count])


def block(S: list[list[float]], a: int, c: int) -> tuple[list[int], list[int]]:
    rows, columns = best(a, [sum(r) for r in S]), best(c, [sum(r[j] for r in S) for j in range(len(S[0]))])
    inside = best(c, [sum(S[i][j] for i in rows) for j in range(len(S[0]))])
    across = best(a, [sum(r[j] for j in columns) for r in S])
    return max([(rows, columns), (rows, inside), (across, columns)], key=lambda b: sum(S[i][j] for i in b[0] for j in b[1]))


def placed(run: Entries, s: str) -> Tensor:
    m, n = SIZES[s]
    entry, out = run.adapted.entries()[s], torch.zeros(m * n).double()
    out[(entry.get("I")[:, None] * n + entry.get("J")).flatten()] = 1.0
    return out.view(m, n)


def check() -> str:
    moves = []
    for kind in ("mixed", "first", "second"):
        run = Entries(LoSiA(P, T=T, importance=kind))  # type: ignore[arg-type]
        run.chosen = {s: placed(run, s) for s in SIZES}
        moved: dict[str, int] = {}
        mean, far = {s: torch.zeros_like(D) for s, D in run.D.items()}, {s: torch.zeros_like(D) for s, D in run.D.items()}
        for t in range(STEPS):
            W = {s: run.base[f"{s}.weight"] + D for s, D in run.D.items()}
            run.pace = {s: min((t - moved[s]) / T, 1.0) if s in moved else 1.0 for s in SIZES}
            grads = run.step(t)
            s = list(SIZES)[t // T % 2]
            u = W[s] * grads[s]
            q = {"mixed": (u - u * u / 2).abs(), "first": u.abs(), "second": u * u}[kind]
            if t % T == 0:
                mean[s], far[s] = 0 * q, 0 * q
            mean[s] = BETA * mean[s] + (1 - BETA) * q
            far[s] = BETA * far[s] + (1 - BETA) * (q - mean[s]).abs()
            if (t + 1) % T == 0:
                a, c = (int(P * size) for size in SIZES[s])
                I, J = block((mean[s] * far[s]).tolist(), a, c)  # noqa: E741
                run.chosen[s] = torch.zeros_like(q)
                run.chosen[s][[[i] for i in I], J] = 1.0
                moved[s] = t + 1
                run.state[s] |= {"m": 0 * q, "v": 0 * q}
            for s, (_, n) in SIZES.items():
                entry, got = run.adapted.entries()[s], torch.zeros(run.D[s].numel()).double()
                got[entry.get("I0")] = entry.get("v0").detach()
                got[(entry.get("I")[:, None] * n + entry.get("J")).flatten()] = entry.get("v").detach().flatten()
                must(torch.equal(placed(run, s), run.chosen[s]), f"{kind}, step {t}: another block of {s}")
                close(f"{kind}, step {t}: D of {s}", got, run.D[s].flatten(), 1e-9)
        moves.append(len(moved))
    must(moves == [2, 2, 2], f"sites that moved: {moves}")
    return f"{STEPS} steps, three importances"
