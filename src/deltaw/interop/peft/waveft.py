"""PEFT's WAVEFT."""

from __future__ import annotations

from .dialect import dialect
from .drawn import Drawn


@dialect
class WaveFT(Drawn):
    type = "WAVEFT"
    methods = ("waveft",)
    word = "waveft_spectrum"
    usual = {"n_frequency": 2592, "scaling": 25.0, "random_loc_seed": 777}
    neutral = {
        "bias": ("none",),
        "wavelet_family": ("db1",),
        "use_idwt": (True,),
        "proportional_parameters": (False,),
    }
