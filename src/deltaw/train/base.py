"""Base models from where they lie: a Hugging Face directory, a GGUF file, or a model inside a Python package."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ..errors import SpecError, need
from ..files.disk import file_hash
from ..quantise import quantise

CONVERTER = "1"  # part of the cache key: raise it when a conversion changes


def load_base(
    spec: str | os.PathLike[str],
    dtype: str | torch.dtype = "float32",
    attention: str | None = None,
    codec: str | None = None,
) -> tuple[Any, Any]:
    """(model, tokenizer) of a directory, a GGUF file, "package:NAME", or, explicitly from the network, "hub:ORG/NAME".

    A GGUF file is dequantised once; the result is kept under ~/.cache/deltaw (or $DELTAW_CACHE) by the file's hash.
    codec: the linear layers' weights are kept as these codes (see deltaw.quantise), the head and the embeddings as they are.
    Weights are read from safetensors or GGUF only, never unpickled; code shipped with a model is never run.
    Errors: SpecError for a place that holds no model.
    """
    transformers = need("transformers", extra="train")
    kind = getattr(torch, dtype) if isinstance(dtype, str) and dtype != "auto" else dtype
    more = {"attn_implementation": attention} if attention else {}
    text = os.fspath(spec)
    if text.startswith("hub:"):
        place: str | Path = text[4:]
        config = transformers.AutoConfig.from_pretrained(place)
    else:
        place = find_base(text)
        if place.is_file():
            place = _from_gguf(place)
        config = transformers.AutoConfig.from_pretrained(place)
    cls = _class_of(transformers, config)
    with _quiet(transformers):
        model = cls.from_pretrained(place, dtype=kind, use_safetensors=True, **more)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SpecError(f"{place} has no tokenizer that can be read: {reason} Save one there (save_pretrained)") from error
    if codec is not None:
        quantise(model, codec)
    return model.eval(), tokenizer


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """The library shows nothing by itself: no bars for a model that loads in a second."""
    bars = transformers.utils.logging
    was = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if was:
            bars.enable_progress_bar()


def find_base(spec: str) -> Path:
    """The directory or GGUF file a model spec points at."""
    if spec.startswith("package:"):
        return _in_package(spec[len("package:") :])
    path = Path(spec).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return path
    if (path / "config.json").is_file():
        return path
    inside = sorted(path.glob("*.gguf")) if path.is_dir() else []
    if len(inside) == 1:
        return inside[0]
    found = (
        f"{len(inside)} GGUF files there, name one"
        if inside
        else ("no config.json there" if path.is_dir() else "no such path")
    )
    raise SpecError(
        f"model '{spec}': expected a directory with config.json, a .gguf file, package:NAME or hub:ORG/NAME; found {found}"
    )


def _in_package(name: str) -> Path:
    """Look into an installed package without importing it."""
    try:
        found = importlib.util.find_spec(name.replace("-", "_"))
    except (ImportError, ValueError):
        found = None
    if found is None or not found.submodule_search_locations:
        raise SpecError(f"model 'package:{name}': no package of that name is installed (pip install {name})")
    root = Path(next(iter(found.submodule_search_locations)))
    files = sorted(root.rglob("*.gguf"))
    homes = sorted(p.parent for p in root.rglob("config.json") if list(p.parent.glob("*.safetensors")))
    if len(files) + len(homes) != 1:
        raise SpecError(
            f"model 'package:{name}': expected one model inside {root}; found {[str(p) for p in files + homes] or 'none'}"
        )
    return (files + homes)[0]


def _class_of(transformers: Any, config: Any) -> Any:
    """The class the weights were saved from; a causal language model where the config does not say."""
    for word in config.architectures or ():
        cls = getattr(transformers, word, None)
        if isinstance(cls, type) and issubclass(cls, transformers.PreTrainedModel):
            return cls
    return transformers.AutoModelForCausalLM


def cache_root() -> Path:
    home = os.environ.get("DELTAW_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "deltaw")
    return Path(home).expanduser()


def _from_gguf(file: Path) -> Path:
    """The directory of the dequantised model: from the cache, or converted into it; a temporary one if it cannot be
    written (removed when the process ends)."""
    need("gguf", extra="train")
    place = cache_root() / "models" / f"{file.stem}-{file_hash(file)[:16]}-{CONVERTER}"
    if (place / "config.json").is_file():
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=place.name + ".", dir=place.parent))
    except OSError:  # a read-only home: convert every time
        import atexit

        new = Path(tempfile.mkdtemp(prefix="deltaw-"))
        atexit.register(shutil.rmtree, new, ignore_errors=True)
        _convert(file, new)
        return new
    try:
        _convert(file, new)
        os.replace(new, place)
    except OSError:
        if not (place / "config.json").is_file():  # not just another process that was faster
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return place


def _convert(file: Path, into: Path) -> None:
    transformers = need("transformers", extra="train")
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    with _quiet(transformers):
        model = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        if hasattr(model.config, "quantization_config"):  # the weights are dense from here on
            del model.config.quantization_config
        model.hf_quantizer = None  # save_pretrained refuses a model that still has one
        transformers.AutoTokenizer.from_pretrained(**where).save_pretrained(into)
        model.save_pretrained(into)
