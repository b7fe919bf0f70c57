"""Files: safetensors and JSON only, written atomically and reproducibly, read strictly; nothing is ever unpickled."""

from .adapter import Saved, load, read, save_adapter
from .export import save_lora, save_model
from .fingerprint import fingerprint

__all__ = ["Saved", "fingerprint", "load", "read", "save_adapter", "save_lora", "save_model"]
