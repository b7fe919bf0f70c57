"""What goes with what, found out by doing it: every method x every capability, every structure x every composition.

A cell is "yes", "no" with the message of the typed error that refused it, or "broken" (something went wrong without a
word; the tests allow none of these). Nothing is written by hand and nothing is kept on disk.
"""

from .capability import COLUMNS, capabilities
from .cells import Cell, markdown, numbered
from .composition import compositions

__all__ = ["COLUMNS", "Cell", "capabilities", "compositions", "markdown", "numbered"]
