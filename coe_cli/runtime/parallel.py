"""Several tasks at once in threads, so that a failure or Ctrl-C does not wait for the rest of them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

_T = TypeVar("_T")
_LOOK_UP_S = 0.2


def in_parallel(tasks: Sequence[Callable[[], object]], workers: int) -> None:
    """Run ``tasks`` as ``outcomes`` does, for what they do alone.

    Raises:
        Exception: the first one that a task raised, while others may still be running.
    """
    for _ in outcomes(tasks, workers):
        pass


def outcomes(tasks: Sequence[Callable[[], _T]], workers: int) -> Iterator[tuple[int, _T]]:
    """Run ``tasks`` in up to ``workers`` threads: the place of each and what it returned, in the order of their ends.

    On the first failure no further task is begun. The threads end with the process, so whoever gives up on them leaves at once.

    Raises:
        Exception: the first one that a task raised, while others may still be running.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    ended: queue.SimpleQueue[tuple[int, _T] | BaseException] = queue.SimpleQueue()
    stop = threading.Event()
    for place in range(len(tasks)):
        waiting.put(place)

    def work() -> None:
        while not stop.is_set():
            try:
                place = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                ended.put((place, tasks[place]()))
            except BaseException as error:
                ended.put(error)

    for _ in range(min(workers, len(tasks))):
        threading.Thread(target=work, daemon=True).start()
    try:
        for _ in tasks:
            outcome = _next(ended)
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome
    finally:
        stop.set()


def _next(ended: queue.SimpleQueue[_T]) -> _T:
    while True:
        try:
            return ended.get(timeout=_LOOK_UP_S)
        except queue.Empty:
            continue  # woken now and then, since a wait without an end does not see Ctrl-C on Windows
