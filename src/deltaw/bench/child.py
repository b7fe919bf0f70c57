"""Measurements in processes of their own: their memory and their allocator are nobody else's.

python -m deltaw.bench.child reads one JSON line {"what": ..., "setting": ..., "threads": ..., ...} and calls
`deltaw.bench.<what>.child(setting, ...)`. Its answer is one line on stdout. If that is a function, it is called once for
every further line and answers each: that is how two processes take turns.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from ..errors import DeltawError
from .clock import use
from .setting import Setting

MARK = "deltaw-bench:"


class Worker:
    """A child process with this one's threads. `ask()` waits for its next answer; use it in a with statement."""

    def __init__(self, what: str, request: dict[str, Any]):
        self.what, self.errors = what, tempfile.TemporaryFile("w+")
        path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "deltaw.bench.child"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        self._say({"what": what, "threads": torch.get_num_threads(), **request})

    def ask(self, words: dict[str, Any] | None = None) -> dict[str, Any]:
        """The next answer; words: a further request, for a child that takes turns."""
        if words is not None:
            self._say(words)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(MARK):
                return json.loads(line[len(MARK) :])  # type: ignore[no-any-return]
        self.errors.seek(0)
        raise DeltawError(
            f"bench {self.what}: the child process ended with {self.process.wait()}:\n{self.errors.read()[-2000:]}"
        )

    def _say(self, words: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(words) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # `ask` says why it ended

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: Any) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        if self.process.poll() is None:
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process.stdout.close()
        self.errors.close()


def in_child(what: str, request: dict[str, Any]) -> dict[str, Any]:
    """One measurement in a process of its own."""
    with Worker(what, request) as worker:
        return worker.ask()


def setting_of(data: dict[str, Any]) -> Setting:
    return Setting(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k != "subject"})


def answer(data: dict[str, Any]) -> None:
    sys.stdout.write(f"{MARK}{json.dumps(data)}\n")
    sys.stdout.flush()


def main() -> None:
    request = json.loads(sys.stdin.readline())
    torch.set_num_threads(request.pop("threads"))
    setting, what = setting_of(request.pop("setting")), request.pop("what")
    use(setting.clock)
    torch.manual_seed(setting.seed)
    found = importlib.import_module(f".{what}", __package__).child(setting, **request)
    if isinstance(found, dict):
        return answer(found)
    answer({"ready": True})
    for line in sys.stdin:
        answer(found(**json.loads(line)))


if __name__ == "__main__":
    main()
