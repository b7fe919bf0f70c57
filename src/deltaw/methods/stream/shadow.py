"""Shadow: a small network beside the model, whose state rides along and corrects the input of every block."""

from __future__ import annotations

from typing import Any, ClassVar

from ...ops import Affine, Map
from ...spec import Declared, Method, Param, Signal, Tensors, kaiming, method, uniform
from ..factors import positive
from ..riding import Shadowed, copies


@method(paper="arXiv:2604.19254", claims=("matches LoRA and DoRA at the same count", "the small network works alone, too"))
class Shadow(Method):
    """Block l gets h + alpha W_up W_down dropout(h - s) and gives y; s <- (1 - g) s + g T(y), g = sigmoid(G(y)).

    s starts as net(h) in front of the first block: `layers` new blocks of that block's make, each as random as it would be
    before pretraining, and a norm as behind the last. W_down (r, d), W_up (d, r); T and G: two layers with a GELU between,
    d -> width -> d (width 0: r); all trained. Start: W_up = 0, so the base's first output; N(0, 0.02²) in the blocks of
    net, torch's defaults elsewhere. The last block has no T and G, as nothing would read its state.
    Trained: `layers` blocks and a norm; r d 2 a block, 2 (2 width d + width + d) a block but the last. Does not merge.
    Source: Li et al. 2026, as in HF PEFT with a mirrored network at the width of the model and shared embeddings. The
    loss of net alone (0.05 times the model's loss on head(net(h)) in PEFT) is up to the training loop.
    Trap: net reads the text anew: use_cache=False. Reentrant checkpoints around blocks are refused.

    >>> from deltaw.methods import Shadow
    >>> {k: p.shape for k, p in Shadow(r=2).params(6, 6).items() if k in ("down", "up", "T1", "G2")}
    {'down': (2, 6), 'up': (6, 2), 'T1': (2, 6), 'G2': (6, 2)}
    """

    sites: ClassVar[str] = "block"
    r: int = 8
    alpha: float = 0.1
    dropout: float = 0.2
    layers: int = 1
    width: int = 0

    def params(self, m: int, n: int) -> Declared:
        positive(r=self.r, layers=self.layers, width=self.width or self.r)
        out: Declared = {"down": Param((self.r, n), kaiming), "up": Param((m, self.r)), "ride": Signal("ride")}
        h = self.width or self.r
        for w in "TG":
            out |= {f"{w}1": Param((h, n), kaiming), f"{w}a": Param((h,), uniform(n**-0.5)),
                    f"{w}2": Param((m, h), kaiming), f"{w}b": Param((m,), uniform(h**-0.5))}  # fmt: skip
        return out

    def declare(self, site: Any) -> Declared:
        out = self.params(*site.shape)
        own = {k: p for k, p in out.items() if k[0] not in "TG" or not site.last}
        return own | (copies(site, self.layers) if site.first else {})

    def layer(self, L: Affine, p: Tensors) -> Map:
        return Shadowed(p, self.alpha, self.dropout, self.layers)
