"""What a person or a CI job sees: every line passes through here, on stdout and on stderr.

A line holds no secret (redact.py), starts no command of a CI runner (a prompt may read "::error title=…"), and can be
shown by the stream as it is: a character that ASCII or Latin-1 lacks is replaced, it doesn't end the program. A reader
that goes away (`check … | head -1`) changes nothing either: the exit code stays the verdict's. Failures, signals and
what the machine refuses become one line and an exit code of errors.EXIT_CODES.
"""

from __future__ import annotations

import codecs
import io
import os
import re
import signal
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TextIO

from safear_edit import processes
from safear_edit.compiler.memory import available_bytes
from safear_edit.redact import redact

INTERNAL, INTERRUPTED, UNUSABLE = 5, 130, 2
"""Exit codes that no SafearError carries: a fault of ours, Ctrl-C, a command that can't be parsed."""
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
RESUMING = frozenset({"apply", "compare", "eval", "generate", "stack", "tune"})
"""Verbs whose finished steps or batches are kept: the same command continues after them."""
SHARED = frozenset({"apply", "plan", "stack", "eval"})
"""Verbs that several processes may work on together (processes.py)."""
PLAIN = {"−": "-", "–": "-", "—": "-", "…": "...", "±": "+/-", "≥": ">=", "≤": "<=", "×": "x", "→": "->", "’": "'",
         "“": '"', "”": '"', "·": ".", "Δ": "d", "≈": "~"}  # fmt: skip
"""What stands for our own signs where a stream can't show them; anything else becomes a question mark."""

_RUNNER_START = re.compile(r"(?m)(^|(?<=\r))([^\S\r\n]*):(?=:)")
_RUNNER_ANYWHERE = re.compile(r"##(?=(?:\[|vso\[|teamcity\[))")
_MARKUP = {c: f"&#{ord(c)};" for c in "&<>|`*_~[]()!#@\\$"}
_ASKED = re.compile(r"[Tt]ried to allocate ([0-9.]+ ?[A-Za-z]*)|[Uu]nable to allocate ([0-9.]+ ?[A-Za-z]*)")
_FREE = re.compile(r"of which ([0-9.]+ ?[A-Za-z]+) is free")


class Ended(BaseException):
    """A signal asked this process to end; not an Exception, so that no handler on the way takes it for a failure."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


# -- text -------------------------------------------------------------------------------------------------------------


def harmless(text: str) -> str:
    """`text` without secrets and without what GitHub, Azure or TeamCity would take for a command."""
    return _RUNNER_ANYWHERE.sub("# #", _RUNNER_START.sub(r"\1\2: ", redact(text)))


def harmless_json(document: str) -> str:
    """A JSON document of the same data in which no runner finds a command (they look for `##[` anywhere in a line)."""
    return _RUNNER_ANYWHERE.sub("#\\\\u0023", document)


def markdown_text(text: str) -> str:
    """Text for a page of Markdown: no table broken, no markup, link, image, mention or address that becomes a link."""
    shown = "".join(_MARKUP.get(c, c) for c in " ".join(redact(text).split()))
    return re.sub(r"(?i)(https?|ftp|mailto|www)([:.])", lambda m: f"{m[1]}&#{ord(m[2])};", shown)


def _stand_in(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(PLAIN.get(c, "?") for c in error.object[error.start : error.end]), error.end


codecs.register_error("safear-plain", _stand_in)


class Shown(io.TextIOBase):
    """A text stream in front of `stream`: whole lines are made harmless and encodable before they go there.

    An unfinished line waits for its end or for a flush. It has no `buffer`: nothing goes round it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._line, self._key, self._gone = stream, "", False, False

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        return "safear-plain"

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        whole, end, self._line = (self._line + text).rpartition("\n")
        if end:
            self._send(whole + end)
        return len(text)

    def flush(self) -> None:
        rest, self._line = self._line, ""
        self._send(rest)

    def command(self, line: str) -> None:
        """One workflow command of our own (`::error …`), which a runner shall take for one."""
        self.flush()
        self._put(redact(line) + "\n")

    def _send(self, text: str) -> None:
        if text:
            self._put(harmless(self._without_key(text)))

    def _without_key(self, text: str) -> str:
        """`text` without the lines of a private key that comes line by line."""
        if not self._key and "PRIVATE KEY-----" not in text:
            return text
        kept = []
        for line in text.splitlines(keepends=True):
            starts, ends = "-----BEGIN" in line and "PRIVATE KEY-----" in line, "-----END" in line
            if starts or not self._key:
                kept.append(redact(line) if starts else line)
                if starts and not kept[-1].endswith("\n"):
                    kept.append("\n")
            self._key = (self._key or starts) and not ends
        return "".join(kept)

    def _put(self, text: str) -> None:
        """Write, unless the reader is gone; then what would still be flushed at exit goes to nowhere."""
        if self._gone:
            return
        try:
            self._stream.write(text.encode(self.encoding, self.errors).decode(self.encoding))
            self._stream.flush()
        except BrokenPipeError:
            self._gone = True
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


@contextmanager
def shown_streams() -> Iterator[None]:
    """stdout and stderr behind `Shown` for the time of one command."""
    kept = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Shown(kept[0]), Shown(kept[1])
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        sys.stdout, sys.stderr = kept


@contextmanager
def unheard() -> Iterator[None]:
    """A process that isn't the main one prints nothing; what goes wrong in it alone is told by `unexpected`."""
    kept = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        sys.stdout = sys.stderr = nowhere
        try:
            yield
        finally:
            sys.stdout, sys.stderr = kept


def say_to_runner(line: str) -> None:
    """One workflow command on stderr."""
    stream = sys.stderr
    if isinstance(stream, Shown):
        stream.command(line)
    else:
        print(redact(line), file=stream)


# -- signals and warnings ---------------------------------------------------------------------------------------------


def be_a_program() -> None:
    """For the process that is the program: signals end it with a word, and no library's warning reaches a person.

    A signal that is ignored (nohup) or handled already stays so; `python -W` shows warnings.
    """
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _end)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def _end(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # a second one must not cut the cleaning up
    raise Ended(number)


def what_is_kept(verb: str | None) -> str:
    """What an interrupted command leaves behind."""
    if verb in RESUMING:
        return "what is done is kept, and the same command continues"
    return "nothing was published; run the same command again"


# -- failures ---------------------------------------------------------------------------------------------------------


def fail(line: str, code: int, *, own: bool = False) -> int:
    """One line on stderr; the exit code. own: it happened in this process alone, which says so if it is unheard."""
    if own and not processes.is_main() and sys.__stderr__:
        print(harmless(f"safear-edit, process {processes.index()}: {line}"), file=sys.__stderr__)
    else:
        print(f"safear-edit: {line}", file=sys.stderr)
    return code


def refused_by_machine(error: MemoryError | OSError) -> str:
    """What the machine refused, as one line with the way out."""
    if isinstance(error, MemoryError):
        return out_of_memory(str(error))
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}; fix that and run the same command again"


def out_of_memory(said: str) -> str:
    """One line with what was asked for and what there was, where the message or the system knows."""
    asked = _ASKED.search(said)
    free = _FREE.search(said)
    had = f"{free[1]} free on the device" if free else _free_memory()
    needed = f", {_bytes(asked[1] or asked[2])} more were needed" if asked else ""
    fix = "close other programs or take a smaller model, then run the same command again"
    return f"not enough memory{needed}{f', {had}' if had else ''}; {fix}"


def _bytes(text: str) -> str:
    """torch's CPU allocator counts plain bytes."""
    number, _, unit = text.strip().partition(" ")
    return f"{int(number) / 2**30:.2f} GiB" if unit == "bytes" else text.strip()


def _free_memory() -> str:
    """What the kernel could give a process now (Linux), for a person; empty where unknown."""
    with suppress(OSError, StopIteration, ValueError):
        return f"{available_bytes() / 2**30:.1f} GiB available"
    return ""


def unexpected(error: Exception) -> int:
    """A fault of ours, or torch's own out-of-memory and disk-full errors in the clothes of a RuntimeError."""
    said = str(error)
    if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in said:
        return fail(out_of_memory(said), UNUSABLE, own=True)
    if "No space left on device" in said:
        line = "no space left on device; free some and run the same command again"
        return fail(line, UNUSABLE, own=True)
    story = redact("".join(traceback.format_exception(error)))
    if os.environ.get("SAFEAR_DEBUG") == "1":
        print(story, file=sys.stderr, end="")
        where = "the traceback is above"
    else:
        with tempfile.NamedTemporaryFile(
            "w", prefix="safear-edit-", suffix=".log", encoding="utf-8", errors="replace", delete=False
        ) as log:
            log.write(story)
        where = f"the traceback is in {log.name}"
    summary = " ".join(redact(said).split())[:200]
    line = f"internal error, please report it: {type(error).__name__}: {summary}; {where}"
    return fail(line, INTERNAL, own=True)
