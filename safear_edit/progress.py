"""What a person sees while a long stage runs: live bars on a terminal, plain lines in a log, nothing when asked.

Every stage of the walk takes a callback `progress(stage, done, total, info)`; `Progress` is the one that prints, always
on stderr, because stdout is for results.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID


Callback = Callable[[str, int, int, str], None]
Mode = Literal["live", "plain", "silent"]

HEARTBEAT = 15.0
"""Seconds between two plain lines of one stage: often enough to see that a CI job lives."""


def silent(stage: str, done: int, total: int, info: str = "") -> None:
    """The callback of those who don't look."""


def under(progress: Callback, name: str) -> Callback:
    """The callback with `name` before every stage's own."""
    return partial(_under, progress, name)


def _under(progress: Callback, name: str, stage: str, done: int, total: int, info: str = "") -> None:
    progress(f"{name}: {stage}", done, total, info)


def mode_for(stream: TextIO, *, quiet: bool) -> Mode:
    """Live bars need a terminal that understands them; a log gets lines; `quiet` gets nothing."""
    if quiet:
        return "silent"
    return "live" if stream.isatty() and os.environ.get("TERM") != "dumb" else "plain"


class Steps:
    """Counts the steps of a walk aloud, with the minutes that all of them together were predicted to take.

    minutes: 0 where nobody predicted any.
    """

    def __init__(
        self, say: Callable[[str], None], count: int, minutes: float, clock: Callable[[], float] = time.monotonic
    ):
        self._say, self._count, self._minutes, self._clock = say, count, minutes, clock
        self._number, self._started = 0, clock()

    def __call__(self, what: str) -> None:
        """Say that the next step begins."""
        self._number += 1
        spent = (self._clock() - self._started) / 60
        if not self._minutes:
            so_far = f"after {spent:.1f} minutes"
        elif spent <= self._minutes:
            so_far = f"{spent:.1f} of about {self._minutes:.0f} minutes"
        else:  # a slow or busy machine: the forecast says no more when it ends
            so_far = f"after {spent:.1f} minutes, where {self._minutes:.0f} were predicted for all"
        self._say(f"step {self._number} of {self._count}: {what}, {so_far}")


class Progress:
    """A `Callback` that prints; used as a context manager, so that bars are closed also after an error."""

    def __init__(self, mode: Mode = "plain", stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic):
        self.mode = mode
        self._stream = stream if stream is not None else sys.stderr
        self._clock = clock
        self._started: dict[str, float] = {}
        self._printed: dict[str, float] = {}
        self._tasks: dict[str, TaskID] = {}
        self._bars: Bars | None = None

    def __enter__(self) -> Self:
        if self.mode == "live":
            self._bars = _bars(self._stream)
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def __call__(self, stage: str, done: int, total: int, info: str = "") -> None:
        """Note that `done` of `total` units of `stage` are finished; `info` is a short running number or a reason."""
        if self.mode == "silent":
            return
        if self._bars is not None:
            if stage not in self._tasks:
                self._tasks[stage] = self._bars.add_task(stage, total=total, info=info)
            self._bars.update(self._tasks[stage], completed=done, total=total, info=info)
        else:
            self._line(stage, done, total, info)

    def say(self, text: str) -> None:
        """One line between the bars."""
        if self.mode == "silent":
            return
        if self._bars is not None:
            self._bars.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=self._stream, flush=True)

    def _line(self, stage: str, done: int, total: int, info: str) -> None:
        now = self._clock()
        first = self._started.setdefault(stage, now)
        last = self._printed.get(stage)
        if last is not None and done < total and now - last < HEARTBEAT:
            return
        self._printed[stage] = now
        spent = now - first
        print(f"{stage}: {done}/{total}  {spent:.0f} s{'  ' + info if info else ''}", file=self._stream, flush=True)


def _bars(stream: TextIO) -> Bars:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(
        TextColumn("{task.description:<22}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[info]}"),
        console=Console(file=stream),
    )
