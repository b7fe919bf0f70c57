"""What the saved adapter is worth: read back from disk onto a float32 base, merged, and read by PEFT."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import warnings
from pathlib import Path
from typing import Any

import torch

from ..convert import facts
from ..files import load
from ..merge import output


def proof(model: Any, directory: Path, probe: dict[str, torch.Tensor]) -> dict[str, Any]:
    """{"certificate", "facts", "peft", "logit_change"} of the adapter in `directory` on a base it was not trained on this copy of.

    certificate: of the merge (see deltaw.merge). facts: mergeable, exact LoRA rank, needs a dense base. peft: largest
    difference of the logits from PEFT's own reading of the directory, and the keys PEFT misses; None without PEFT.
    logit_change: the largest change that the adapter makes, to judge the differences by.
    The model is left as it came.
    """
    with torch.no_grad():
        base = output(model(**probe))
        adapted = load(model, directory)
        want = output(model(**probe))
    out = {"certificate": adapted.merge(probe).certificate.to_dict(), "facts": facts(adapted)}
    adapted.detach()
    change = float((want - base).abs().max())
    return {**out, "peft": _peft(model, directory, probe, want), "logit_change": change}


def _peft(model: Any, directory: Path, probe: dict[str, torch.Tensor], want: torch.Tensor) -> dict[str, Any] | None:
    if importlib.util.find_spec("peft") is None or not (directory / "adapter_config.json").is_file():
        return None
    from peft import PeftConfig, PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the keys PEFT misses are counted below
        wrapped = PeftModel(model, PeftConfig.from_pretrained(str(directory)), "default")
        read = wrapped.load_adapter(str(directory), "default")
    try:
        with torch.no_grad():
            got = output(wrapped.eval()(**probe))
    finally:
        wrapped.unload()
    return {
        "version": importlib.metadata.version("peft"),
        "missing_keys": len(read.missing_keys),
        "unexpected_keys": len(read.unexpected_keys),
        "max_logit_difference": float((got - want).abs().max()),
    }
