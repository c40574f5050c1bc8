"""Long sequences that aren't held in memory: in a temporary file, as a choice of another's items, or made on demand."""

from __future__ import annotations

import tempfile
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar, overload

T = TypeVar("T")
S = TypeVar("S")
BLOCK = 1024
"""Items that are read from a file together."""


class Lazy(Sequence[T]):
    """What the three share: one item, or the tuple of a slice, by `_taken`."""

    def _taken(self, numbers: range) -> tuple[T, ...]:
        raise NotImplementedError

    @overload
    def __getitem__(self, which: int) -> T: ...
    @overload
    def __getitem__(self, which: slice) -> tuple[T, ...]: ...
    def __getitem__(self, which: int | slice) -> T | tuple[T, ...]:
        numbers = range(len(self))[which]
        return self._taken(numbers) if isinstance(numbers, range) else self._taken(range(numbers, numbers + 1))[0]

    def __iter__(self) -> Iterator[T]:
        for start in range(0, len(self), BLOCK):
            yield from self[start : start + BLOCK]


class Spool(Lazy[T]):
    """Items as lines of a temporary file without a name, which goes with the process; 8 bytes each are in memory.

    to_line and from_line: functions of a module, so that a spool can be sent to another process; a line has no \\n.
    """

    def __init__(self, items: Iterable[T], to_line: Callable[[T], str], from_line: Callable[[str], T]) -> None:
        self._to_line, self._from_line = to_line, from_line
        self._file, self._starts = tempfile.TemporaryFile(), array("q")  # noqa: SIM115 (closed by the next line)
        weakref.finalize(self, self._file.close)
        for item in items:
            self._starts.append(self._file.tell())
            self._file.write(f"{to_line(item)}\n".encode())
        self._file.flush()

    def __len__(self) -> int:
        return len(self._starts)

    def _taken(self, numbers: range) -> tuple[T, ...]:
        if numbers.step != 1:
            return tuple(self[number] for number in numbers)
        if not numbers:
            return ()
        self._file.seek(self._starts[numbers[0]])
        return tuple(self._from_line(self._file.readline().decode().removesuffix("\n")) for _ in numbers)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (tuple(self), self._to_line, self._from_line)


class Picked(Lazy[T]):
    """The items of a sequence that have these numbers, in their order."""

    def __init__(self, items: Sequence[T], numbers: Iterable[int]) -> None:
        self.numbers, self._items = array("q", numbers), items

    def __len__(self) -> int:
        return len(self.numbers)

    def _taken(self, numbers: range) -> tuple[T, ...]:
        return tuple(self._items[self.numbers[number]] for number in numbers)


class Mapped(Lazy[T]):
    """What a function makes of each item, made when it is asked for."""

    def __init__(self, items: Sequence[S], make: Callable[[S], T]) -> None:
        self._items: Sequence[Any] = items
        self._make: Callable[[Any], T] = make

    def __len__(self) -> int:
        return len(self._items)

    def _taken(self, numbers: range) -> tuple[T, ...]:
        return tuple(self._make(self._items[number]) for number in numbers)
