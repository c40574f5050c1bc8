"""Every failure that a user can cause, as one tree; the exit code of the command line is the class's.

    SafearError                 5   internal: a bug of ours
    ├── UsageError              2   wrong argument, unknown name, output exists, no space
    │   ├── NotFetchedError     2   published weights that `pull` can fetch
    │   └── SpecError           2   a spec, recipe or prompt file that can't be taken as it is
    ├── TrustError              4   untrusted weights, bad signature, changed folder
    ├── GateError               1   an erasure or preservation gate failed
    └── InconclusiveError       3   too little evidence for a verdict

A message is one line that says where, what was expected, what was found and the way out; it never holds a secret.
"""

from __future__ import annotations

from safear_edit.redact import redact

EXIT_CODES = {
    0: "done; for `check`, `apply` and the like: PASS",
    1: "FAIL: of a run's own report, or of a gate against its baseline",
    2: "the command or an input can't be used, or the machine lacks memory or disk",
    3: "inconclusive: too little evidence for a verdict",
    4: "not to be trusted: signature, changed files, weights that hold more than tensors",
    5: "internal error: a fault of this program",
    129: "ended by SIGHUP (the terminal was closed)",
    130: "interrupted (Ctrl-C)",
    143: "ended by SIGTERM",
}
"""Every code that the command line ends with, and what it means."""


class SafearError(Exception):
    """Base of all expected failures; `str(error)` is the one line a person reads."""

    exit_code = 5

    def __init__(self, where: str, expected: str, got: str, fix: str) -> None:
        self.where, self.expected, self.got, self.fix = where, expected, got, fix
        super().__init__(printable(redact(f"{where}: expected {expected}, got {got}; {fix}")))

    def __reduce__(self) -> tuple[object, ...]:
        """One process of several tells the others (processes.py)."""
        return type(self), (self.where, self.expected, self.got, self.fix), self.__dict__


class UsageError(SafearError):
    """The command or its inputs can't be used as given."""

    exit_code = 2


class NotFetchedError(UsageError):
    """Published weights that a hub has and this machine hasn't: `model` is their reference, `what` is to be fetched."""

    model, what = "", ""


class SpecError(UsageError):
    """A concept spec, recipe or prompt file is wrong; `where` is file:line or file and field."""

    others: tuple[SpecError, ...] = ()
    """What else is wrong in the same file, a line each."""


class TrustError(SafearError):
    """Weights or a signed folder that must not be trusted."""

    exit_code = 4


class GateError(SafearError):
    """The evidence fails a gate."""

    exit_code = 1


class InconclusiveError(SafearError):
    """The evidence is too thin for pass or fail."""

    exit_code = 3


def printable(text: str) -> str:
    """Text from files that anybody may have written, for a terminal: newlines and escapes become visible, one line
    stays one."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
