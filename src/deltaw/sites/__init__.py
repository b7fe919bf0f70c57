"""Where a delta can go: linear layers, convolutions, embeddings, expert stacks, opaque layers, hidden-state streams."""

from .base import Site
from .find import find, is_ours, leaf_site, matches
from .foreign import provide

__all__ = ["Site", "find", "is_ours", "leaf_site", "matches", "provide"]
