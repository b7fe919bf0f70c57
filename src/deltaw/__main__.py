"""`python -m deltaw`: the same as the command `deltaw`."""

from .cli import entry

entry()
