"""Prompt tuning: soft tokens in front of the input."""

from __future__ import annotations

from typing import ClassVar

from ...ops import Affine, Map
from ...sites.prefix import Prefix
from ...spec import Declared, Method, Param, Tensors, method
from ..factors import positive
from ..soft import Begin, spoken


@method(
    paper="arXiv:2104.08691",
    start="none: the soft tokens are read from the first step on",
    claims=("as good as full fine-tuning from about 10 billion parameters on",),
)
class PromptTuning(Method):
    """The model reads [P; E(x)]: v trained embeddings P (v, d) in front of those of the input.

    Start: the embeddings of v tokens drawn from the vocabulary; of the token ids in `text`, repeated or cut to v; or
    N(0, 1) with begin="normal" (PEFT's default). Trainable: v d in all. Costs v more tokens of every layer.
    Outputs, losses and labels keep the length of the input: states of soft tokens are cut off. `Plan(PromptTuning())`
    finds the backbone. Several prompts live together stand one behind the other. Does not merge.
    Source: Lester et al. 2021 (v = 100).
    Trap: a larger learning rate than for weights is needed (0.3 in the paper, with Adafactor).

    >>> from deltaw.methods import PromptTuning
    >>> {k: p.shape for k, p in PromptTuning(v=20).params(96, 6).items()}
    {'P': (20, 6)}
    """

    sites: ClassVar[str] = "prefix"
    v: int = 100
    text: tuple[int, ...] = ()
    begin: Begin = "vocabulary"

    def params(self, m: int, n: int) -> Declared:
        positive(v=self.v)
        return {"P": Param((self.v, n), spoken(self.text, self.begin))}

    def layer(self, L: Affine, p: Tensors) -> Map:
        return Prefix(tokens=p.P)
