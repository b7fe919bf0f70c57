"""Thousands of adapters as data in slots on one model: exact low-rank factors, no modules.

    arena.py     pages of rank for one shape of site, in chunks that never move
    slots.py     one adapter's factors in the arenas
    read.py      an adapter directory into slots, straight from the memory-mapped file
    mixture.py   the rows of one batch sorted by adapter, and the factors they need side by side
    spot.py      the forward of one module
    bank.py      Bank
"""

from .bank import Bank

__all__ = ["Bank"]
