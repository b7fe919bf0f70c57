"""Where commands take models from: a base, or an adapter's directory together with its base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Base = Annotated[
    str | None,
    typer.Option("--base", help="The base model; by default the one named by recipe.yaml beside the adapter."),
]
Dtype = Annotated[str, typer.Option("--dtype", help="float32, bfloat16, float16 or auto.")]
MODEL_HELP = "A Hugging Face directory, a .gguf file, package:NAME or hub:ORG/NAME."
MARKS = ("deltaw.json", "adapter_config.json")


def adapter_directory(source: str) -> Path | None:
    """The adapter in a directory: the directory itself, or the `adapter` inside a run; None where there is none."""
    path = Path(source)
    return next((p for p in (path, path / "adapter") if any((p / m).is_file() for m in MARKS)), None)


def the_adapter(source: str) -> Path:
    from ..errors import StateMismatch

    found = adapter_directory(source)
    if found is None:
        raise StateMismatch(f"{source} holds no adapter: a directory with {' or '.join(MARKS)} was expected")
    return found


def recipe_of(adapter: Path | None) -> dict[str, Any]:
    """The recipe of the run that an adapter's directory belongs to (RUN/adapter, or beside it); {} without one."""
    if adapter is None:
        return {}
    for file in (adapter / "recipe.yaml", adapter.parent / "recipe.yaml"):
        if file.is_file() and (file.parent == adapter or adapter.name == "adapter"):
            from ..train.recipe import read_yaml

            return read_yaml(file)
    return {}


def base_of(adapter: Path, base: str | None) -> str:
    """The base of an adapter: as given, or as the recipe of its run says, or as PEFT's configuration says."""
    import json

    from ..errors import SpecError

    if found := base or recipe_of(adapter).get("model"):
        return str(found)
    if (adapter / MARKS[1]).is_file():
        named = json.loads((adapter / MARKS[1]).read_text()).get("base_model_name_or_path")
        if named and Path(named).exists():
            return str(named)
    raise SpecError(f"which base does {adapter} belong to? Name it with --base ({MODEL_HELP})")


def open_source(source: str, base: str | None, dtype: str, codes: bool = True) -> tuple[Any, Any, Any]:
    """(model, tokenizer, Adapted or None) of an adapter's directory, a run's directory, or a base model. codes: a base that was trained on as
    codes is opened as such, unless another one is named."""
    from ..train import load_base

    found = adapter_directory(source)
    if found is None:
        return *load_base(source, dtype), None
    from .. import load

    codec = None if base or not codes else (recipe_of(found).get("train") or {}).get("quantise")
    model, tokenizer = load_base(base_of(found, base), dtype, codec=codec)
    return model, tokenizer, load(model, found)
