"""deltaw coordinates: do activations keep their size when a model gets wider?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .output import AsJson, as_json, say, table
from .source import MODEL_HELP


def run(
    source: Annotated[
        str | None, typer.Argument(help=f"Whose architecture; by default a Llama of two layers. {MODEL_HELP}")
    ] = None,
    widths: Annotated[str, typer.Option(help="Sizes of the hidden state, in ascending order.")] = "32,64,128,256",
    parametrisations: Annotated[str, typer.Option(help="Of standard, mup, umup.")] = "standard,mup",
    lr: Annotated[str, typer.Option(help="AdamW's rate: one, or one for each parametrisation (u-muP's are about 100 times larger).")] = "1e-2",
    steps: Annotated[int, typer.Option(help="Steps on one batch.")] = 4,
    seeds: Annotated[int, typer.Option(help="Fresh models for each width.")] = 2,
    layer: Annotated[str | None, typer.Option(help="The layer to draw; by default the last one.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the picture (SVG) here.")] = None,
    json: AsJson = False,
) -> None:
    """Train fresh models of several widths for a few steps and measure mean |activation| against width, for each parametrisation."""
    import torch

    from ..errors import SpecError
    from ..study.coordinates import coordinates
    from ..study.widths import at_width, drawn, tiny_config
    from ..train.progress import choose

    sizes, names, rates = (
        _numbers(widths, int, "widths are written 64,128,256"),
        [p.strip() for p in parametrisations.split(",")],
        _numbers(lr, float, "rates are written 1e-2 or 1e-2,1"),
    )
    if len(rates) not in (1, len(names)):
        raise SpecError(f"--lr takes one rate or one for each of {', '.join(names)}; found {len(rates)}")
    config = tiny_config() if source is None else _config(source)
    ids = torch.randint(config.vocab_size, (4, 32), generator=torch.Generator().manual_seed(0))

    def loss(model: Any) -> Any:
        return model(input_ids=ids, labels=ids, use_cache=False).loss

    show = choose(None)
    show.begin(len(sizes) * len(names) * seeds, what="models")
    try:
        found = coordinates(
            lambda width: drawn(at_width(config, width)), sizes, loss, parametrisations=names, lr=dict(zip(names, rates * len(names))),
            steps=steps, seeds=range(seeds), progress=lambda done, _: show.step(done),
        )  # fmt: skip
    finally:
        show.end()
    if layer is not None and layer not in found.layers:
        raise SpecError(f"no layer '{layer}' was seen; there are {', '.join(found.layers)}")
    if out is not None:
        found.write(out, layer)
    if json:
        as_json(found.to_dict())
        return
    last = found.steps[-1]
    heads = [f"{p}: {w}" for p in found.parametrisations for w in sizes] + [
        f"slope {p}" for p in found.parametrisations
    ]
    rows = []
    for name in found.layers:
        curves = [dict(found.curve(p, name, last)) for p in found.parametrisations]
        rows.append(
            [
                name,
                *(c.get(float(w)) for c in curves for w in sizes),
                *(round(found.slope(p, name), 2) for p in found.parametrisations),
            ]
        )
    table(["layer", *heads], rows)
    say(
        f"mean |activation| after {last} steps; slope: d log size / d log width, 0 keeps its size"
        + (f"; drawn in {out}" if out else "")
    )


def _numbers(text: str, kind: Any, form: str) -> list[Any]:
    from ..errors import SpecError

    try:
        return [kind(v) for v in text.split(",")]
    except ValueError:
        raise SpecError(f"{form}; found '{text}'") from None


def _config(source: str) -> Any:
    from ..errors import need
    from ..train import load_base
    from ..train.base import find_base

    place = find_base(source)
    if place.is_file():  # a GGUF file says it in its own way
        return load_base(source)[0].config
    return need("transformers", extra="train").AutoConfig.from_pretrained(place)
