"""Files: safetensors and JSON only, written atomically and reproducibly, read strictly; nothing is ever unpickled."""

from .export import save_lora, save_model
from .fingerprint import fingerprint
from .load import Saved, load, read
from .save import save_adapter

__all__ = ["Saved", "fingerprint", "load", "read", "save_adapter", "save_lora", "save_model"]
