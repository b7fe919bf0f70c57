"""The one door to other libraries' file formats: they register here from above, this layer knows none of them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from ..errors import DeltawError
from .disk import Writer

if TYPE_CHECKING:
    from ..attach import Adapted
    from ..plan import Assignment, Plan
    from .load import Saved

Tensors = dict[str, Tensor]


class Inexpressible(DeltawError):
    """This adapter has no equal in the foreign format; the message is the reason."""


class Foreign(Protocol):
    """A foreign format. `config_name` is the JSON file that marks a directory as its own."""

    name: str
    config_name: str

    def write(
        self, adapted: Adapted, state: Tensors, directory: Path
    ) -> tuple[dict[str, Any], Tensors, dict[str, Writer]]:
        """(its configuration, its tensors, further files of the directory); raises Inexpressible."""
        ...

    def native(self, adapted: Adapted, tensors: Tensors) -> Tensors:
        """Its tensors under our names, for an attached (possibly still empty) adapter; raises StateMismatch."""
        ...

    def plan(self, saved: Saved, model: nn.Module) -> tuple[Plan, dict[str, Any]]:
        """(our plan, the fields of the configuration that were not needed and have to be kept). May complete the tensors
        of `saved` where the format leaves to its reader what follows from the base or from other files."""
        ...

    def keys(self, a: Assignment) -> dict[str, str] | None:
        """Our tensor -> the key under which its file holds the very same numbers in the same shape, for the tensors of one
        site; None where any of them is packed in another way."""
        ...

    def plain_lora(self, adapted: Adapted, factors: dict[str, tuple[Tensor, Tensor]]) -> tuple[dict[str, Any], Tensors]:
        """A plain LoRA with these factors and scale 1 at every site."""
        ...


FOREIGN: dict[str, Foreign] = {}
PLUGINS = ["deltaw.interop.peft"]  # imported by name when a file is first read or written; each adds itself to FOREIGN


def formats() -> dict[str, Foreign]:
    while PLUGINS:
        importlib.import_module(PLUGINS.pop())
    return FOREIGN
