"""Commands for those who develop methods: `python -m safear_edit.studies STUDY …`, each with a --help of its own.

What can't be used as given is one line on stderr and the exit code of the program itself (errors.py), for every study.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Sequence

from safear_edit import studies
from safear_edit.cli import terminal
from safear_edit.errors import SafearError
from safear_edit.registry import suggestion

PARTS = ("arguments", "contest", "paper_claims", "roofline", "rows", "speed_janus", "speed_training")
"""Modules of this folder that are no study of their own."""


def names() -> list[str]:
    """Every study there is: the modules of this folder that have a `main`."""
    found = (one.name for one in pkgutil.iter_modules(studies.__path__))
    return sorted(name for name in found if not name.startswith("_") and name not in PARTS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Hand the rest of the line to the study named first; 2 for one that isn't there or what it can't use."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(f"python -m safear_edit.studies {'|'.join(names())} …")
        return 0 if words else 2
    name, rest = words[0], words[1:]
    if name not in names():
        print(f"study {name!r}: expected one of {', '.join(names())}; {suggestion(name, names())}", file=sys.stderr)
        return 2
    try:
        return int(importlib.import_module(f"{studies.__name__}.{name}").main(rest) or 0)
    except SafearError as error:
        return terminal.fail(str(error), error.exit_code)
    except OSError as error:
        return terminal.fail(terminal.refused_by_machine(error), terminal.UNUSABLE)


if __name__ == "__main__":
    sys.exit(main())
