"""deltaw extrapolate: where a run is going, from its checkpoints."""

from __future__ import annotations

import json as jsonlib
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from .output import AsJson, as_json, say, table
from .source import Base, Dtype


def run(
    sources: Annotated[
        list[str], typer.Argument(help="A run with checkpoints, or adapters' directories, the oldest first.")
    ],
    out: Annotated[str, typer.Option("--out", "-o", help="Where the LoRA goes.")],
    target: Annotated[float | None, typer.Option(help="The score to reach; without --scores, the step.")] = None,
    scores: Annotated[
        str | None,
        typer.Option(
            help="One number for each checkpoint, 0.1,0.2,0.4, or a metric of the run's metrics.jsonl; default: their steps."
        ),
    ] = None,
    last: Annotated[int | None, typer.Option(help="Only checkpoints up to this step.")] = None,
    rest: Annotated[bool, typer.Option("--rest", help="Add the last checkpoint's other directions.")] = False,
    rank: Annotated[
        int | None, typer.Option(help="Instead: the last checkpoint's largest directions, at the norm of all.")
    ] = None,
    base: Base = None,
    dtype: Dtype = "float32",
    json: AsJson = False,
) -> None:
    """Extrapolate a run: the rank-1 path of its checkpoints' weight changes, followed to a target score (AlphaRL). The result is a
    plain LoRA for the original base. A run keeps its checkpoints with train.save_every=10 train.keep=100."""
    from ..errors import SpecError
    from ..extrapolate import read
    from ..train import load_base
    from .source import base_of

    if (target is None) == (rank is None):
        raise SpecError("give either --target, a score to go to, or --rank, a number of directions to keep")
    home, found = checkpoints(sources, last)
    steps = [step_of(p) for p in found]
    model, _ = load_base(base_of(home / "adapter" if home else found[-1], base), dtype)
    if rank is not None:
        made, facts = read(model, found[-1:]).truncate(rank), {}
    else:
        assert target is not None
        y = numbers(scores, home, steps) if scores is not None else [float(s) for s in steps if s is not None]
        if len(y) != len(found):
            raise SpecError(f"one score for each of the {len(found)} checkpoints was expected; found {len(y)}")
        read_in = read(model, found)
        made, lines = read_in.predict(y, target, rest)
        facts = {
            "scores": y,
            "target": target,
            "sites": [site_facts(s, read_in.paths[s], lines[s], made.factors[s]) for s in lines],
        }
    path = made.save(out)
    facts |= {"directory": str(path), "rank": made.rank, "checkpoints": [str(p) for p in found]}
    if json:
        as_json(facts)
        return
    if "sites" in facts:
        columns = ("site", "rank1_share", "r2", "norm", "norm_last")
        table(["site", "rank-1 share", "R²", "|ΔW*|", "|ΔW| last"], [[s[c] for c in columns] for s in facts["sites"]])
        if (median := sorted(s["r2"] for s in facts["sites"])[len(facts["sites"]) // 2]) < 0.5:
            say(f"the scores say little about where the weights go (median R² {median:.2f}): take more checkpoints, smoother scores or a nearer target")
    say(f"{path}: LoRA of rank {made.rank} at {len(made.factors)} sites, from {len(found)} checkpoints")


def site_facts(site: str, path: Any, line: Any, pair: Any) -> dict[str, Any]:
    """How far the last change is one direction, how well a line explains the scores, and the sizes."""
    S = path[-1][1]
    whole = float(S.square().sum())
    size = float(((pair[0].mT @ pair[0]) * (pair[1] @ pair[1].mT)).sum().clamp_min(0).sqrt())
    return {
        "site": site, "rank1_share": float(S[0] ** 2) / whole if whole else None, "r2": line.r2,
        "norm": size, "norm_last": whole**0.5,
    }  # fmt: skip


def step_of(path: Path) -> int | None:
    """The step in the name of a checkpoint's directory, or of the one it lies in."""
    for name in (path.name, path.parent.name):
        if match := re.fullmatch(r"(?:checkpoint|step)-(\d+)", name):
            return int(match.group(1))
    return None


def checkpoints(sources: list[str], last: int | None) -> tuple[Path | None, list[Path]]:
    """(the run's directory where one was given, the adapters' directories with the oldest first)."""
    from ..errors import SpecError
    from .source import the_adapter

    home = Path(sources[0]) if len(sources) == 1 and list(Path(sources[0]).glob("checkpoint-*")) else None
    found = [the_adapter(str(p)) for p in (home.glob("checkpoint-*") if home else map(Path, sources))]
    if home:
        found.sort(key=lambda p: step_of(p) or 0)
    if last is not None:
        found = [p for p in found if (step_of(p) or 0) <= last]
    if not found:
        raise SpecError(f"no checkpoint up to step {last} in {', '.join(sources)}")
    return home, found


def numbers(text: str, home: Path | None, steps: list[int | None]) -> list[float]:
    """Numbers as they are written, or the values of a metric at the checkpoints' steps."""
    from ..errors import SpecError, nearest

    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        pass
    file = home / "metrics.jsonl" if home else None
    if file is None or not file.is_file():
        raise SpecError(
            f"--scores: numbers like 0.1,0.2 were expected, or a metric of a run with metrics.jsonl; found '{text}'"
        )
    lines = [jsonlib.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    known = {(line["step"]): line[text] for line in lines if line.get(text) is not None}
    if not known:
        names = {k for line in lines for k in line}
        raise SpecError(f"--scores: {file} has no metric '{text}'{nearest(text, names)}")
    return [known[max(s for s in known if s <= (step or 0))] for step in steps if any(s <= (step or 0) for s in known)]
