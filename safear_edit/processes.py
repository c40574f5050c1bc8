"""One command on several processes, as `accelerate launch` and `torchrun` start them.

Every process takes the same steps in the same order. Work that divides is dealt out and everyone gets all of its
results; the rest is done by all of them alike. What must happen once (a lock, a choice, a published folder) the first
process does, the main one, and tells the others. So whatever is decided, all decide the same, and none waits for one
that took another turn. On one process every function here is the plain thing.

Talking is accelerate's and torch's: objects go from process to process as pickles, which is safe only because all of
them are one command of one user.

A process may have several hands for what divides: threads that each do a job of their own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from safear_edit.errors import SafearError, UsageError

if TYPE_CHECKING:
    from accelerate import PartialState

J = TypeVar("J")
T = TypeVar("T")

LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
"""Environment variables by which a launcher says which process this is, on this machine, and of how many."""


def count() -> int:
    """How many processes work on this command."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in LAUNCHED) else 1


def index() -> int:
    """Which of them this one is, from 0."""
    return int(os.environ["RANK"]) if count() > 1 else 0


def is_main() -> bool:
    """Whether this is the process that writes and prints."""
    return index() == 0


def on_cpu() -> bool:
    """Whether the processes talk, and work, without a GPU: there is none, or ACCELERATE_USE_CPU says so."""
    import torch
    from accelerate.utils import parse_flag_from_env

    return parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available()


def device(asked: str) -> str:
    """The device of this process of several: UsageError for another than `auto` or the kind that they all have."""
    own = "cpu" if on_cpu() else f"cuda:{os.environ['LOCAL_RANK']}"
    if asked not in ("auto", own.partition(":")[0]):
        fix = "take auto; ACCELERATE_USE_CPU=true keeps all of them off the GPU"
        raise UsageError(f"--device {asked}", f"{own} in process {index()} of {count()}", "another", fix)
    return own


def from_main(make: Callable[[], T]) -> T:
    """What `make` gives in the main process, which alone calls it; every process must come here. `make` must not.

    An expected failure of the main process is every process's. UsageError if a process has ended.
    """
    if count() == 1:
        return make()
    from accelerate.utils import broadcast_object_list

    told = [_tried(make) if is_main() else None]
    _state()
    return _result(_talk(lambda: broadcast_object_list(told))[0])


def together(work: Callable[[], T]) -> list[T]:
    """Every process does its own `work`; everyone gets all results, by process. Failures as in `from_main`."""
    if count() == 1:
        return [work()]
    from accelerate.utils import gather_object

    mine = _tried(work)
    _state()
    return [_result(one) for one in _talk(lambda: gather_object([mine]))]


def dealt(jobs: Sequence[J], do: Callable[[J], T], hands: int = 1) -> Iterator[T]:
    """`do` of every job, in order: job i is done by process i modulo their number, and everyone gets all results.

    hands: of a single process, which has so many jobs under way, each by a thread of its own (`side_by_side`). No more
    results wait in memory than are `under_way`, and no more are lost with a killed process.
    """
    each = under_way(hands)
    for start in range(0, len(jobs), each):
        window = jobs[start : start + each]
        for found in together(partial(side_by_side, window[index() :: count()], do, hands)):
            yield from found


def under_way(hands: int) -> int:
    """Jobs at a time: one for each process, or for each hand of a single one. Several processes divide the machine's
    cores among them as it is, and may not have as many hands each."""
    return count() if count() > 1 else hands


def side_by_side(jobs: Sequence[J], do: Callable[[J], T], hands: int) -> list[T]:
    """`do` of every job, in order, so many at a time, each by one thread; a single job has all of torch's threads.

    A small network's products are too short to be shared: on two quiet cores the minis draw 1.26 to 1.48 times as fast
    where each thread has a batch (`python -m safear_edit.studies benchmark --parts hands`), and in another program's
    company threads that share products wait for each other. What `do` changes must be its own.
    """
    if hands == 1 or len(jobs) < 2:
        return [do(job) for job in jobs]
    import torch

    threads, gradients = torch.get_num_threads(), torch.is_grad_enabled()

    def alone(job: J) -> T:
        with torch.set_grad_enabled(gradients):  # a new thread begins with them
            return do(job)

    try:
        with ThreadPoolExecutor(hands, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(alone, jobs))
    finally:
        torch.set_num_threads(threads)  # else a thread that begins later had one as well


def meet() -> None:
    """Form the group of processes, for torch's own use of it; every process must come here."""
    _state()


# -- talking ----------------------------------------------------------------------------------------------------------


def _state() -> PartialState:
    """The group of processes, formed the first time that they talk."""
    from accelerate import PartialState

    return PartialState(cpu=on_cpu())


def _tried(work: Callable[[], T]) -> tuple[T | None, SafearError | None]:
    try:
        return work(), None
    except SafearError as error:
        return None, error


def _result(told: Any) -> Any:
    value, error = told
    if error is not None:
        raise error
    return value


def _talk(exchange: Callable[[], T]) -> T:
    """What the others say; a process that has ended breaks the connection."""
    try:
        return exchange()
    except RuntimeError as error:  # torch's DistBackendError and DistNetworkError among them
        got = f"a lost connection ({' '.join(str(error).split())[:80]})"
        fix = "what is done is kept, and the same command continues"
        raise UsageError(f"process {index()} of {count()}", "all processes at work", got, fix) from None
