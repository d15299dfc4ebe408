"""Run several downloads at once, so that a failure or Ctrl-C does not wait for the rest of them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence

_LOOK_UP_S = 0.2


def in_parallel(tasks: Sequence[Callable[[], None]], workers: int) -> None:
    """Run ``tasks`` in up to ``workers`` threads; on the first failure no further task is begun.

    The threads end with the process, so whoever gives up on them leaves at once.

    Raises:
        Exception: the first one that a task raised, while others may still be running.
    """
    waiting: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    outcomes: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
    stop = threading.Event()
    for task in tasks:
        waiting.put(task)

    def work() -> None:
        while not stop.is_set():
            try:
                task = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                task()
            except BaseException as error:
                outcomes.put(error)
            else:
                outcomes.put(None)

    for _ in range(min(workers, len(tasks))):
        threading.Thread(target=work, daemon=True).start()
    try:
        for _ in tasks:
            error = _next(outcomes)
            if error is not None:
                raise error
    finally:
        stop.set()


def _next(outcomes: queue.SimpleQueue[BaseException | None]) -> BaseException | None:
    while True:
        try:
            return outcomes.get(timeout=_LOOK_UP_S)
        except queue.Empty:
            continue  # woken now and then, since a wait without an end does not see Ctrl-C on Windows
