"""Atomic feature mimicking: a layer's outputs on their principal components; for click models' layers and tables too."""

from __future__ import annotations

import torch
from torch import Tensor

from ..rank.allocators import whole_share
from . import compressor


@compressor(paper="arXiv:2405.18146", needs=("inputs", "mean"))
class AFM:
    """mu = E[y], U_k the leading eigenvectors of Cov(y) = W Cov(x) Wᵀ (y without its bias): W' = U_k (U_kᵀ W), and the bias gains
    (I - U_k U_kᵀ) mu. E |y - y'|² = the sum of the other eigenvalues: the best rank k for centred outputs. Count: k (m + n).

    The same as the SVD in the metric of Cov(x) (svd_llm on centred inputs). A table: `table(E, counts, k)`. Then everything is fine-tuned.
    Source: Yu et al. KDD 2024 and its code, whose demo keeps the moments of one batch; here they are of all, in float64.
    Trap: a ReLU put between the factors breaks the closed form.
    """

    def weight(self, W: Tensor, stats: dict[str, Tensor], keep: float) -> tuple[Tensor, Tensor, Tensor]:
        M, mean = stats["inputs"].double().to(W.device), stats["mean"].double().to(W.device)
        W64, mu = W.detach().double(), W.detach().double() @ mean
        U = principal(W64 @ (M - torch.outer(mean, mean)) @ W64.mT, min(whole_share(keep, *W.shape), *W.shape))
        return U, U.mT @ W64, mu - U @ (U.mT @ mu)


def principal(covariance: Tensor, k: int) -> Tensor:
    """The k leading eigenvectors as columns."""
    return torch.linalg.eigh(covariance)[1].flip(1)[:, :k]


def table(E: Tensor, counts: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """(codes (rows, k), U (d, k), mu (d,)): row e becomes U U ᵀ(e - mu) + mu, with mean and covariance weighted by how often rows occur."""
    p = counts.double() / counts.double().sum()
    E64 = E.detach().double()
    mu = p @ E64
    centred = E64 - mu
    U = principal(centred.mT @ (p[:, None] * centred), k)
    return centred @ U, U, mu
