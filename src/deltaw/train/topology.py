"""For thin structures such as vessels: the clDice loss, and a small convolutional adapter for an image embedding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def soft_skeleton(v: Tensor, rounds: int = 10) -> Tensor:
    """The skeleton of v (batch, channels, height, width) in [0, 1], differentiable: what opening takes away, collected while
    eroding. erode = the smaller of two one-dimensional minima of 3, dilate = a 3 x 3 maximum."""
    skeleton = torch.zeros_like(v)
    for _ in range(rounds):
        eroded = _erode(v)
        rest = F.relu(v - F.max_pool2d(eroded, 3, 1, 1))
        skeleton = skeleton + F.relu(rest - skeleton * rest)
        v = eroded
    return skeleton


def _erode(v: Tensor) -> Tensor:
    return torch.minimum(-F.max_pool2d(-v, (3, 1), 1, (1, 0)), -F.max_pool2d(-v, (1, 3), 1, (0, 1)))


def cldice(p: Tensor, y: Tensor, rounds: int = 10, eps: float = 1e-6) -> Tensor:
    """1 - clDice of probabilities p and a mask y, both (batch, 1, height, width), meant over the batch; 0 for p = y.

    Tp = sum S(p) y / sum S(p), Ts = sum S(y) p / sum S(y), loss = 1 - mean (2 Tp Ts + eps) / (Tp + Ts + eps).
    Source: arXiv:2003.07311; rounds and eps as in TopoLoRA-SAM, whose skeleton this is. Trap: a mask without foreground
    gives a loss near 0 whatever p: it is an addition to Dice and cross-entropy, not their replacement.
    """
    sp, sy = soft_skeleton(p, rounds), soft_skeleton(y, rounds)
    over = tuple(range(1, p.dim()))
    precision = (sp * y).sum(over) / (sp.sum(over) + eps)
    sensitivity = (sy * p).sum(over) / (sy.sum(over) + eps)
    return 1.0 - ((2 * precision * sensitivity + eps) / (precision + sensitivity + eps)).mean()


def dice(p: Tensor, y: Tensor, eps: float = 1.0) -> Tensor:
    """1 - (2 sum p y + eps) / (sum p + sum y + eps), meant over the batch."""
    over = tuple(range(1, p.dim()))
    return 1.0 - ((2 * (p * y).sum(over) + eps) / (p.sum(over) + y.sum(over) + eps)).mean()


def topology_loss(logits: Tensor, y: Tensor, weight: float = 0.5) -> Tensor:
    """Binary cross-entropy + Dice + weight · clDice of sigmoid(logits)."""
    p = torch.sigmoid(logits)
    return F.binary_cross_entropy_with_logits(logits, y) + dice(p, y) + weight * cldice(p, y)


class ConvAdapter(nn.Module):
    """e + P2 GELU(BN(P1 DW(e))) of an embedding e (batch, C, height, width): depthwise k x k, C to h, h to C, no biases.

    A part of the model, to be trained in full: Plan(..., train_modules=["conv_adapter"]). Its numbers: C k² + 2 C h + 2 h.
    Source: TopoLoRA-SAM, 2026. Trap: P2 starts at random there, so the first output is not the base's; zero=True starts it
    at 0. BatchNorm's running means are state and belong to the model, not to the adapter's file: freeze them (eval mode)
    once they are right.
    """

    def __init__(self, channels: int, hidden: int = 256, k: int = 3, zero: bool = False):
        super().__init__()
        self.dw = nn.Conv2d(channels, channels, k, padding=k // 2, groups=channels, bias=False)
        self.p1, self.bn = nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden)
        self.p2 = nn.Conv2d(hidden, channels, 1, bias=False)
        if zero:
            nn.init.zeros_(self.p2.weight)

    def forward(self, e: Tensor) -> Tensor:
        out: Tensor = e + self.p2(F.gelu(self.bn(self.p1(self.dw(e)))))
        return out
