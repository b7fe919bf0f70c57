"""A measurement in a process of its own: its memory and its allocator are nobody else's.

python -m deltaw.bench.child, with {"what": ..., "threads": ..., ...} on stdin; the last line of stdout is the answer.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from ..errors import DeltawError
from .setting import Setting

MARK = "deltaw-bench:"


def in_child(what: str, request: dict[str, Any]) -> dict[str, Any]:
    """Run `deltaw.bench.<what>.child(setting, ...)` in a new process with this one's threads; returns its answer."""
    text = json.dumps({"what": what, "threads": torch.get_num_threads(), **request})
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, "-m", "deltaw.bench.child"], input=text, capture_output=True, text=True, env=environment
    )
    lines = [x for x in done.stdout.splitlines() if x.startswith(MARK)]
    if done.returncode or not lines:
        raise DeltawError(f"bench {what}: the child process ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(lines[-1][len(MARK) :])  # type: ignore[no-any-return]


def setting_of(data: dict[str, Any]) -> Setting:
    return Setting(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k != "subject"})


def main() -> None:
    request = json.loads(sys.stdin.read())
    torch.set_num_threads(request.pop("threads"))
    setting, what = setting_of(request.pop("setting")), request.pop("what")
    torch.manual_seed(setting.seed)
    answer = importlib.import_module(f".{what}", __package__).child(setting, **request)
    sys.stdout.write(f"{MARK}{json.dumps(answer)}\n")


if __name__ == "__main__":
    main()
