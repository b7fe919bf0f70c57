"""PEFT's FOURIERFT."""

from __future__ import annotations

from .dialect import dialect
from .drawn import Drawn


@dialect
class FourierFT(Drawn):
    type = "FOURIERFT"
    methods = ("fourierft",)
    word = "fourierft_spectrum"
    usual = {"n_frequency": 1000, "scaling": 150.0, "random_loc_seed": 777}
    neutral = {"bias": ("none",)}
