"""Where a run is going: weight changes beyond its last checkpoint, from the rank-1 path of the earlier ones.

Source: AlphaRL (Cai et al. 2025, arXiv:2510.00553): in reinforcement learning the largest singular direction of W_k - W_0 carries
nearly all of the gain and moves along a line, so early checkpoints tell where later ones will be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .convert import Converted, Pair, site_delta
from .errors import NotMergeable, SpecError, StateMismatch
from .files import load
from .lowrank import core_svd
from .ops import Op, factors

Spectrum = tuple[Tensor, Tensor, Tensor]  # U (m, r), S (r,), V (r, n): ΔW = U diag(S) V


@torch.no_grad()
def spectrum(delta: Op | Pair) -> Spectrum:
    """The singular value decomposition in float64: of factors (B, A) through the core of two QRs, never m x n."""
    pair = factors(delta) if isinstance(delta, Op) else delta
    if pair is None or pair[0].shape[1] > min(pair[0].shape[0], pair[1].shape[1]):
        dense = delta.dense() if isinstance(delta, Op) else delta[0].double() @ delta[1].double()
        U, S, V = torch.linalg.svd(dense.double(), full_matrices=False)
        return U, S, V
    return core_svd(pair[0].double(), pair[1].double())


def align(a: Tensor) -> Tensor:
    """(K, m) -> the same with signs such that each row has a positive cosine with the next one; the last row stays."""
    out = a.clone()
    for k in range(len(a) - 2, -1, -1):
        if out[k] @ out[k + 1] < 0:
            out[k] = -out[k]
    return out


@dataclass(frozen=True)
class Line:
    """a(y) = mean + t p with t = (y - c0) / c1: partial least squares of one component, and y on its scores t.

    r2: the share of the scores' variance that the line explains; 0 where nothing moves, and then a(y) is the mean.
    """

    mean: Tensor
    p: Tensor
    c0: float
    c1: float
    r2: float

    def at(self, target: float) -> Tensor:
        return self.mean + (target - self.c0) / self.c1 * self.p if self.c1 else self.mean


def fit(a: Tensor, y: Sequence[float] | Tensor) -> Line:
    """a (K, m), y (K,): w = normalised sum_k (a_k - ā)(y_k - ȳ), t_k = (a_k - ā)ᵀw, p = sum t_k (a_k - ā) / sum t², y ~ c0 + c1 t.

    Trap: sklearn's PLSRegression divides every coordinate by its standard deviation unless scale=False, and so does the authors'
    script; here coordinates keep their sizes, as in the paper.
    """
    y = torch.as_tensor(y, dtype=a.dtype, device=a.device)
    if len(y) != len(a) or len(a) < 2:
        raise SpecError(f"one score for each of at least two checkpoints was expected; found {len(y)} for {len(a)}")
    mean, c0 = a.mean(0), float(y.mean())
    X, d = a - mean, y - c0
    w = X.mT @ d
    size = torch.linalg.vector_norm(w)
    if size == 0:
        return Line(mean, torch.zeros_like(mean), c0, 0.0, 0.0)
    t = X @ (w / size)
    c1 = float(t @ d / (t @ t))
    left = d - c1 * t
    return Line(mean, X.mT @ t / (t @ t), c0, c1, 1.0 - float(left @ left / (d @ d)))


def predict(
    path: Sequence[Spectrum], scores: Sequence[float] | Tensor, target: float, rest: bool = False
) -> tuple[Pair, Line]:
    """(B, A) with W* = W_0 + B A for one weight, and the line that it lies on. path: W_k - W_0 of the checkpoints, in order.

    a_k = sigma_1 u_1 of each, signs aligned from the last one backwards; W* = W_0 + a* v_1ᵀ with v_1 of the last one. rest: plus its
    other directions as they are. Trap: W* is counted from W_0 (the authors' script adds it to the last checkpoint).
    """
    line = fit(align(torch.stack([U[:, 0] * S[0] for U, S, _ in path])), scores)
    U, S, V = path[-1]
    B, A = line.at(target)[:, None], V[:1]
    if rest:
        B, A = torch.cat([B, U[:, 1:] * S[1:]], 1), V
    return (B, A), line


def truncate(s: Spectrum, k: int, c: float = 1.0) -> Pair:
    """c |ΔW|_F / |ΔW_k|_F · ΔW_k: the k largest directions, at c = 1 with the norm of all of them."""
    if k < 1:
        raise SpecError(f"a truncation keeps at least one direction; found {k}")
    U, S, V = (s[0][:, :k], s[1][:k], s[2][:k])
    kept = torch.linalg.vector_norm(S)
    gain = c * float(torch.linalg.vector_norm(s[1]) / kept) if kept > 0 else 0.0
    return gain * U * S, V


@dataclass
class Checkpoints:
    """The weight changes of a run's checkpoints by site, and the last of them, attached."""

    paths: dict[str, list[Spectrum]]
    last: Any

    def predict(self, scores: Sequence[float], target: float, rest: bool = False) -> tuple[Converted, dict[str, Line]]:
        """Every site at the target score, as a plain LoRA; and the lines. A target may lie before, between or behind the scores."""
        y = torch.as_tensor(scores, dtype=torch.float64)
        if len(y) > 1 and bool((y == y[0]).all()):
            raise SpecError(f"all checkpoints have the score {float(y[0])}: nothing says which way it rises")
        made = {site: predict(path, y, target, rest) for site, path in self.paths.items()}
        return self._lora({site: pair for site, (pair, _) in made.items()}), {
            site: line for site, (_, line) in made.items()
        }

    def truncate(self, k: int, c: float = 1.0) -> Converted:
        """The last checkpoint's k largest directions at each site, at the norm of the whole change."""
        return self._lora({site: truncate(path[-1], k, c) for site, path in self.paths.items()})

    def _lora(self, pairs: dict[str, Pair]) -> Converted:
        return Converted(
            {s: (B.float(), A.float()) for s, (B, A) in pairs.items()}, dict.fromkeys(pairs, 0.0), self.last
        )


@torch.no_grad()
def read(model: nn.Module, directories: Sequence[Any]) -> Checkpoints:
    """Load adapter directories one after another, take the spectrum of every site's change; the last adapter stays attached.

    Modules trained in full go along as they are in the last. Errors: StateMismatch where the checkpoints are not of one run,
    NotMergeable for adapters that change no weights.
    """
    paths: dict[str, list[Spectrum]] = {}
    adapted: Any = None
    for k, directory in enumerate(directories):
        if adapted is not None:
            adapted.detach()
        adapted = load(model, directory)
        sites = [a for a in adapted.assignments if a.site.kind != "module"]
        if bad := [a.site.name for a in sites if a.site.kind in ("stream", "parallel", "prefix", "attention")]:
            raise NotMergeable(f"{bad[0]}: {adapted.plan.method.key} changes no weight, so there is no path of weights")
        found = {a.site.name: spectrum(site_delta(adapted, a)) for a in sites}
        if k and set(found) != set(paths):
            raise StateMismatch(
                f"{directory} adapts other places than the checkpoints before it: {sorted(set(found) ^ set(paths))[:3]}"
            )
        for site, s in found.items():
            paths.setdefault(site, []).append(s)
    if not paths:
        raise SpecError(
            "no checkpoint was given, or one that trains whole modules only: there is no weight change to follow"
        )
    return Checkpoints(paths, adapted)
