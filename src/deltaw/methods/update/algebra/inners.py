"""Inner optimisers on coordinates: C -> (direction U, gain), where lr · gain · U is the step.

The gain is what a convention puts outside: Adam's bias correction, with epsilon before it ("hf": GaLore, Fira, OSD, LoRA-FA). With
epsilon after it ("torch") the correction is in U and the gain is 1. `first` and `second` name the state that scales
with the gradient and with its square: what carries transport.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ....errors import SpecError, need

Numbers = dict[str, Tensor]


class Inner:
    """See the module. `s` is the state of one tensor, made at the first call and changed in place."""

    first: ClassVar[tuple[str, ...]] = ()
    second: ClassVar[tuple[str, ...]] = ()
    elementwise: ClassVar[bool] = True  # the second moments have a number for each coordinate

    def __call__(self, C: Tensor, s: Numbers) -> tuple[Tensor, float]:
        raise NotImplementedError

    def read(self, s: Numbers, name: str) -> Tensor:
        """A moment as numbers: what carries look at."""
        return s[name]

    def write(self, s: Numbers, name: str, value: Tensor) -> None:
        s[name] = value

    def floats(self, shape: tuple[int, ...]) -> int:
        """Numbers of floating-point state for coordinates of this shape."""
        return len((*self.first, *self.second)) * math.prod(shape)


def count(s: Numbers) -> int:
    """The number of this call, from 1, kept in the state."""
    s["step"] = s["step"] + 1 if "step" in s else torch.ones(())
    return int(s["step"])


def mean(s: Numbers, name: str, beta: float, new: Tensor) -> Tensor:
    """s[name] <- beta s[name] + (1 - beta) new, from zero."""
    if name not in s:
        s[name] = torch.zeros_like(new)
    return s[name].mul_(beta).add_(new, alpha=1 - beta)


@dataclass(frozen=True)
class SGD(Inner):
    """U = C."""

    def __call__(self, C: Tensor, s: Numbers) -> tuple[Tensor, float]:
        return C, 1.0


@dataclass(frozen=True)
class Sign(Inner):
    """U = sign C."""

    def __call__(self, C: Tensor, s: Numbers) -> tuple[Tensor, float]:
        return C.sign(), 1.0


@dataclass(frozen=True)
class Ema(Inner):
    """m <- beta m + (1 - beta) C; U = m, over 1 - betaᵗ where `corrected`."""

    beta: float = 0.9
    corrected: bool = True
    first: ClassVar[tuple[str, ...]] = ("m",)

    def __call__(self, C: Tensor, s: Numbers) -> tuple[Tensor, float]:
        t = count(s)
        return mean(s, "m", self.beta, C), 1 / (1 - self.beta**t) if self.corrected else 1.0


@dataclass(frozen=True)
class Adam(Inner):
    """m, v: running means of C and C². torch: U = m̂ / (sqrt v̂ + eps); hf: U = m / (sqrt v + eps), gain sqrt(1 - b2ᵗ) / (1 - b1ᵗ)."""

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    convention: Literal["torch", "hf"] = "torch"
    first: ClassVar[tuple[str, ...]] = ("m",)
    second: ClassVar[tuple[str, ...]] = ("v",)

    def __call__(self, C: Tensor, s: Numbers) -> tuple[Tensor, float]:
        (b1, b2), t = self.betas, count(s)
        m = mean(s, "m", b1, C)
        if "v" not in s:
            s["v"] = torch.zeros_like(C)
        root = s["v"].mul_(b2).addcmul_(C, C, value=1 - b2).sqrt()
        if self.convention == "hf":
            return m / root.add_(self.eps), (1 - b2**t) ** 0.5 / (1 - b1**t)
        return m / root.div_((1 - b2**t) ** 0.5).add_(self.eps).mul_(1 - b1**t), 1.0


# transformers' old AdamW, which GaLore's code started from, and others from that
HF_ADAM = Adam(eps=1e-6, convention="hf")


@lru_cache(maxsize=8)  # 256 numbers that take a loop in Python
def _map(signed: bool, device: torch.device) -> Tensor:
    made: Tensor = need("bitsandbytes", extra="bnb").functional.create_dynamic_map(signed=signed)
    return made.to(device, torch.float32)


@dataclass(frozen=True)
class Adam8bit(Inner):
    """Adam whose moments rest as one byte each, in blocks with a common scale (Dettmers et al. 2022, by bitsandbytes).

    m on the signed dynamic map, v on the unsigned one; a step is made with the moments as they are before they are rounded. Everything is quantised: bitsandbytes' own
    optimiser leaves tensors below 4096 numbers alone. State: bytes, and one float per block and moment.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    convention: Literal["torch", "hf"] = "torch"
    block: int = 256
    first: ClassVar[tuple[str, ...]] = ("m",)
    second: ClassVar[tuple[str, ...]] = ("v",)

    def __call__(self, C: Tensor, s: Numbers) -> tuple[Tensor, float]:
        plain = {k: self.read(s, k) for k in ("m", "v") if k in s} | {k: s[k] for k in ("step",) if k in s}
        out = Adam(self.betas, self.eps, self.convention)(C, plain)
        s["step"] = plain["step"]
        for k in ("m", "v"):
            self.write(s, k, plain[k])
        return out

    def read(self, s: Numbers, name: str) -> Tensor:
        F = need("bitsandbytes", extra="bnb").functional
        scale = s[f"{name}.scale"]  # has the dtype of the coordinates: a float64 model gets float64 moments back
        out = F.dequantize_blockwise(
            s[name], absmax=scale.float(), code=_map(name == "m", s[name].device), blocksize=self.block
        )
        return out.to(scale.dtype)  # type: ignore[no-any-return]

    def write(self, s: Numbers, name: str, value: Tensor) -> None:
        F = need("bitsandbytes", extra="bnb").functional
        codes, state = F.quantize_blockwise(
            value.float().contiguous(), code=_map(name == "m", value.device), blocksize=self.block
        )
        s[name], s[f"{name}.scale"] = codes, state.absmax.to(value.dtype)

    def floats(self, shape: tuple[int, ...]) -> int:
        return 2 * math.ceil(math.prod(shape) / self.block)


@dataclass(frozen=True)
class Adafactor(Inner):
    """U = C / sqrt v̂, cut to RMS `clip`. v̂: row and column means of C² (Shazeer, Stern 2018), with weight 1 - tᵈᵉᶜᵃʸ for the past;
    all of it where the coordinates are no matrix. No first moment, no relative step, no scale by the weights. clip = inf: no cut."""

    decay: float = -0.8
    eps: float = 1e-30
    clip: float = 1.0
    second: ClassVar[tuple[str, ...]] = ("rows", "columns")
    elementwise: ClassVar[bool] = False

    def __call__(self, C: Tensor, s: Numbers) -> tuple[Tensor, float]:
        b = 1 - count(s) ** self.decay
        square = C * C + self.eps
        if C.dim() != 2:
            U = C * mean(s, "rows", b, square).rsqrt()
        else:
            rows, columns = mean(s, "rows", b, square.mean(1)), mean(s, "columns", b, square.mean(0))
            U = C * torch.outer((rows / rows.mean()).rsqrt(), columns.rsqrt())
        return U / torch.clamp(U.norm() / max(U.numel(), 1) ** 0.5 / self.clip, min=1.0), 1.0

    def floats(self, shape: tuple[int, ...]) -> int:
        return sum(shape) if len(shape) == 2 else math.prod(shape)


@dataclass(frozen=True)
class Lion(Inner):
    """U = sign(b1 m + (1 - b1) C); then m <- b2 m + (1 - b2) C (Chen et al. 2023). Its learning rate is 3 to 10 times below Adam's."""

    betas: tuple[float, float] = (0.9, 0.99)
    first: ClassVar[tuple[str, ...]] = ("m",)

    def __call__(self, C: Tensor, s: Numbers) -> tuple[Tensor, float]:
        b1, b2 = self.betas
        U = C * (1 - b1) + s["m"] * b1 if "m" in s else C * (1 - b1)
        mean(s, "m", b2, C)
        return U.sign_(), 1.0


Word = Literal["adam", "adam8bit", "adafactor", "lion"]


def inner(word: Word, adam: Adam) -> Inner:
    """The inner optimiser that a rule's `inner` names; `adam` is the rule's own, whose settings the 8-bit one takes over."""
    made: dict[str, Inner] = {
        "adam": adam, "adam8bit": Adam8bit(adam.betas, adam.eps, adam.convention), "adafactor": Adafactor(), "lion": Lion(),
    }  # fmt: skip
    if word not in made:
        raise SpecError(f"inner is one of {', '.join(made)}; found {word!r}")
    return made[word]
