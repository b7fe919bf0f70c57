"""The command line, `deltaw`: one small file per command.

A command's module imports only the standard library and typer at its top; the extras are imported when the command
runs. Errors of `deltaw.errors` (and of files that cannot be opened) become one line on stderr and exit code 2;
`--debug`, anywhere on the line, shows the traceback instead.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence


def entry() -> None:
    """The console script."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it reports optional kernels that it lacks on a CPU
    raise SystemExit(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code: 0 done, 1 a check failed, 2 wrong input."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [w for w in words if w != "--debug"]
    try:
        return _run(words)
    except BrokenPipeError:  # `deltaw methods | head`
        sys.stderr.close()
        return 0
    except OSError as error:
        if debug:
            raise
        return _complain(error)
    except Exception as error:
        from ..errors import DeltawError  # here, not above: errors are rare

        if debug or not isinstance(error, DeltawError):
            raise
        return _complain(error)


def _run(words: list[str]) -> int:
    from ..errors import need

    need("typer", extra="cli")
    from .app import build

    try:
        build()(args=words, prog_name="deltaw")  # always ends in SystemExit; 2 for a line that does not parse
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0


def _complain(error: Exception) -> int:
    sys.stderr.write(f"deltaw: {error}\n")
    return 2
