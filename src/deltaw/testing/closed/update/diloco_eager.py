"""Eager DiLoCo of one worker is DiLoCo; several workers are in tests/test_distributed.py."""

from __future__ import annotations

from deltaw.methods.update.diloco_eager import DiLoCoEager

from .diloco import closed as closed

RULES = [
    DiLoCoEager(every=4),
    DiLoCoEager(every=2, outer_lr=0.5, momentum=0.6, inner={"key": "adamw", "weight_decay": 0.1}),
]
