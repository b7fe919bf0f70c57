"""LoRAM: train a LoRA on a pruned model, infer with it on the large one."""

from __future__ import annotations

from typing import Literal

from ...ops import random as rng
from . import compressor
from .indices import IndexMap, Pair


@compressor(paper="arXiv:2502.13533")
class LoRAM:
    """Prune the model (deltaw.prune.prune_structured: whole key/value groups and MLP neurons; first and last layers whole), train a LoRA on the
    small one, and recover: B = 0 but B[I_out] = B_p, A = 0 but A[:, I_in] = A_p ("zero"), or A's new columns N(0, 1 / r²) ("normal"); W' = W + s
    B A on the full model (deltaw.prune.recover). QLoRAM: deltaw.quantise the small model before it is trained. Between pruning and training the
    small model may be aligned, by a little of plain pre-training: all its weights, deltaw.optimizer(model, "adamw", 5e-5).

    Source: Zhang et al. 2025 and its code (r 8, alpha 16, 65 to 95 % pruned). Unstructured pruning keeps the shapes: then W' = W + s B A as it
    is, or with what was trained at pruned entries masked out; which of the two the paper means was not checked. Trap: merge into the large,
    never the aligned, weights.
    """

    new: Literal["zero", "normal"] = "zero"

    def recover(self, pair: Pair, mapped: IndexMap, seed: int = 0, site: str = "") -> Pair:
        columns = None
        if self.new == "normal" and mapped.columns is not None:
            r = len(pair[1])
            columns = rng.normal((r, mapped.shape[1]), rng.key(seed, "recover", site), 1.0 / r)
        return mapped.embed(pair, columns)
