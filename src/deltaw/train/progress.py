"""What a run shows while it works. The library itself prints nothing: it tells a `Progress`."""

from __future__ import annotations

import logging
import sys
from typing import Any

from ..errors import need

log = logging.getLogger("deltaw.train")


class Progress:
    """Silent: messages go to the logger "deltaw.train". Subclass it to show a run elsewhere."""

    def begin(self, total: int, done: int = 0, what: str = "training") -> None:
        """A loop starts: `total` steps, `done` of them already made by the run that is resumed."""

    def step(self, done: int) -> None:
        """`done` steps are made."""

    def metrics(self, values: dict[str, Any]) -> None:
        """A line of metrics.jsonl."""

    def note(self, text: str, warning: bool = False) -> None:
        log.log(logging.WARNING if warning else logging.INFO, "%s", text)

    def end(self) -> None:
        """The loop is over, also after an error."""


class Bar(Progress):
    """A rich progress bar on stderr: loss, tokens/s, memory, time left."""

    def __init__(self, console: Any = None):
        rich = need("rich.progress", extra="train")
        self.console = console or need("rich.console", extra="train").Console(stderr=True)
        self.bar = rich.Progress(
            rich.TextColumn("[bold]{task.description}"),
            rich.BarColumn(),
            rich.MofNCompleteColumn(),
            rich.TextColumn("{task.fields[text]}"),
            rich.TimeElapsedColumn(),
            rich.TextColumn("left"),
            rich.TimeRemainingColumn(),
            console=self.console,
        )
        self.task: Any = None

    def begin(self, total: int, done: int = 0, what: str = "training") -> None:
        if self.task is not None:  # of an earlier loop: its last state has been printed
            self.bar.remove_task(self.task)
        self.task = self.bar.add_task(what, total=total, completed=done, text="")
        self.bar.start()

    def step(self, done: int) -> None:
        self.bar.update(self.task, completed=done)

    def metrics(self, values: dict[str, Any]) -> None:
        if "eval_loss" in values:
            self.note(f"step {values['step']}: evaluation loss {values['eval_loss']:.4f}")
        elif "loss" in values and self.task is not None:
            text = f"reward {values['reward']:.3f}" if values.get("reward") is not None else f"loss {values['loss']:.3f}"
            if values.get("tokens_per_second"):
                text += f"  {values['tokens_per_second']:,.0f} tok/s"
            self.bar.update(self.task, text=f"{text}  {values['rss_bytes'] / 1e9:.1f} GB")

    def note(self, text: str, warning: bool = False) -> None:
        from rich.markup import escape

        self.console.print(
            f"[yellow]warning:[/] {escape(text)}" if warning else f"[dim]{escape(text)}[/]", highlight=False
        )

    def end(self) -> None:
        self.bar.stop()


def choose(progress: Progress | bool | None) -> Progress:
    """A Progress as it is; True: the bar; False: silent; None: the bar where stderr is a terminal."""
    if isinstance(progress, Progress):
        return progress
    return Bar() if (sys.stderr.isatty() if progress is None else progress) else Progress()
