"""All commands in one typer application."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated

import typer

COMMANDS = {
    "Methods": ("methods", "show", "new", "check"),
    "Adapters": ("plan", "advise", "train", "eval", "chat", "merge", "convert", "extrapolate", "squeeze", "compress", "inspect"),
    "Project": ("demo", "bench", "coordinates", "docs"),
}


def build() -> typer.Typer:
    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(top)
    for panel, names in COMMANDS.items():
        for name in names:
            module = import_module(f".{name}", __package__)
            if hasattr(module, "app"):  # a command with commands of its own
                app.add_typer(module.app, name=name, rich_help_panel=panel)
            else:
                app.command(name, rich_help_panel=panel)(module.run)
    return app


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"deltaw {version('deltaw')}")
        raise typer.Exit()


def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere on the line.")] = False,
) -> None:
    """ΔW: every way of changing a trained model's weights cheaply."""
