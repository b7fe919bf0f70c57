"""The console script `deltaw`, outside the package so that asking for help does not import torch.

`import deltaw` imports torch: about 1.8 s of processor time on the machine this was written on, against 0.2 s for
everything help needs. The commands' modules need no more of the package than its path, so a question for help is
answered from a bare package of that name; any other command line imports the package as usual.
"""

import sys
from importlib.util import find_spec
from types import ModuleType


def entry() -> None:
    words = sys.argv[1:]
    if not words or "--help" in words or "-h" in words:
        found = find_spec("deltaw")
        assert found is not None and found.submodule_search_locations is not None
        bare = ModuleType("deltaw")
        bare.__path__ = list(found.submodule_search_locations)
        sys.modules["deltaw"] = bare
    from deltaw.cli import main

    raise SystemExit(main())
