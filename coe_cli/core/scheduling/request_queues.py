"""The requests of one pool: queued by model, delayed until a retry, and each ended exactly once."""

from __future__ import annotations

import math
from heapq import heappop, heappush

from coe_cli.core.scheduling.scheduler_events import Decision, Refuse, RequestId
from coe_cli.core.scheduling.scheduler_state import ModelEntry, RequestEntry, RequestState


class RequestQueues:
    """A heap of requests for each model, one of delayed requests, and the table of all that have not ended."""

    def __init__(self) -> None:
        self._requests: dict[RequestId, RequestEntry] = {}
        self._queued: dict[str, ModelEntry] = {}
        self._delayed: list[tuple[float, int, RequestEntry]] = []
        self._waiting = 0
        self._delayed_count = 0
        self._head: RequestEntry | None = None
        self.refusals = 0

    def _enqueue(self, entry: RequestEntry) -> None:
        model = entry.model
        entry.state = RequestState.QUEUED
        heappush(model.queue, (entry.key, entry.seq, entry))
        if not model.waiting:
            self._queued[model.name] = model
        model.waiting += 1
        self._waiting += 1

    def _left_queue(self, model: ModelEntry) -> None:
        model.waiting -= 1
        self._waiting -= 1
        if not model.waiting:
            del self._queued[model.name]
            model.infeasible_since_s = math.inf
        if not self._waiting:
            self._head = None

    def _release_delayed(self, now_s: float) -> None:
        while self._delayed and (self._delayed[0][0] <= now_s or self._delayed[0][2].state is RequestState.ENDED):
            entry = heappop(self._delayed)[2]
            if entry.state is RequestState.DELAYED:
                self._delayed_count -= 1
                self._enqueue(entry)

    def _end(self, entry: RequestEntry) -> None:
        if entry.state is RequestState.QUEUED:
            self._left_queue(entry.model)
        elif entry.state is RequestState.DELAYED:
            self._delayed_count -= 1
        entry.state = RequestState.ENDED
        del self._requests[entry.request_id]

    def _refuse(
        self, entry: RequestEntry, code: str, message: str, hint: str, out: list[Decision], after_s: float | None
    ) -> None:
        self._end(entry)
        self.refusals += 1
        out.append(Refuse(entry.request_id, code, message, hint, after_s))

    def _refuse_queue(
        self, model: ModelEntry, code: str, message: str, hint: str, out: list[Decision], after_s: float | None
    ) -> None:
        while (entry := model.head()) is not None:
            heappop(model.queue)
            self._refuse(entry, code, message, hint, out, after_s)
