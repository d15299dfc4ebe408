"""A worker without a model: started ahead, with the runtime imported, so that a switch need not wait for that."""

from __future__ import annotations

import contextlib

from coe_cli.errors import CoeError
from coe_cli.runtime.college.worker_handle import WorkerHandle
from coe_cli.runtime.worker import worker_process


class WarmWorker:
    """One process at most, at first the one that was started with the command line.

    It holds no device memory, and some 60 MB of the machine's, beside the pool.
    """

    def __init__(self, command: list[str] | None, threads: int | None = None) -> None:
        self._command, self._threads = command, threads
        self._worker: WorkerHandle | None = None

    @property
    def there(self) -> bool:
        """Whether there is one, or one is being started."""
        return self._worker is not None and (self._worker.alive or not self._worker.pid)

    async def prepare(self) -> None:
        """Start one where there is none; one that cannot be started is no loss."""
        if self.there:
            return
        await self.end()
        worker = self._worker = WorkerHandle(self._command, self._threads)
        with contextlib.suppress(CoeError):
            worker.start()

    def take(self) -> WorkerHandle:
        """The warm one, or one that is still to be started."""
        worker, ready = self._worker, self._worker is not None and self._worker.alive
        if worker is None or not ready:
            fresh = WorkerHandle(self._command, self._threads)
            if self._command is None and (early := worker_process.take()) is not None:
                fresh.start(early)
            return fresh
        self._worker = None
        return worker

    async def end(self) -> None:
        """End it, if there is one."""
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.end()
