"""What the command lines of the studies share: numbers from 1 up, and the command that stands in a row."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Collection, Iterable


def positive(text: str) -> int:
    """A whole number above 0; argparse refuses anything else in one line."""
    try:
        found = int(text)
    except ValueError:
        found = 0
    if found < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return found


def command(
    parser: argparse.ArgumentParser, chosen: argparse.Namespace, names: Collection[str], first: Iterable[object] = ()
) -> str:
    """The command as it is to be given again: what stands first on its line, then of the options `names` those that
    weren't left as they are by default."""
    words = [parser.prog, *(shlex.quote(str(word)) for word in first)]
    for name in names:
        value, usual = (_words(one) for one in (getattr(chosen, name), parser.get_default(name)))
        if value != usual:
            words += [f"--{name.replace('_', '-')}", *map(shlex.quote, value)]
    return " ".join(words)


def _words(value: object) -> list[str]:
    """As it is given on a command line; none for a switch."""
    if isinstance(value, list | tuple):
        return [str(one) for one in value]
    return [] if value is None or value is True else [str(value)]
