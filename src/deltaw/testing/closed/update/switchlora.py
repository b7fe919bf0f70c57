"""AdamW by hand; without switches every vector has made the same number of steps."""

from __future__ import annotations

from deltaw.methods.update.switchlora import SwitchLoRA

from .adamw import closed as closed

RULES = [SwitchLoRA(), SwitchLoRA(weight_decay=0.1)]
