"""`python -m deltaw`: the same as the command `deltaw`."""

from .cli import main

raise SystemExit(main())
