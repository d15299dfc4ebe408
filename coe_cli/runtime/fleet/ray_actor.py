"""A loaded model as a Ray actor: a college of one model on whatever node Ray chose for it.

The actor outlives the batch that started it and answers for the next one; nobody having asked it anything for
``keep_alive_s``, it ends its worker and itself. Nothing here imports Ray before an actor runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from typing import Any

from msgspec import Struct, structs

from coe_cli.core.answers.answer import Answer
from coe_cli.core.models.model_spec import ModelSpec
from coe_cli.core.providers import on_host
from coe_cli.core.scheduling.scheduler_state import ModelCost, PoolConfig
from coe_cli.errors import CoeError, ModelMissing
from coe_cli.providers.settings import worker_threads
from coe_cli.runtime.batch.batch_engine import RowFailure
from coe_cli.runtime.college.collecting import About, Collector, broken_off
from coe_cli.runtime.college.college import College
from coe_cli.runtime.college.college_events import Ask
from coe_cli.runtime.college.college_settings import CollegeSettings
from coe_cli.runtime.college.memory_probe import MemoryProbe
from coe_cli.runtime.folders import folders
from coe_cli.runtime.model_folder.on_disk import models_on_disk
from coe_cli.runtime.store.model_store import open_model

_LOOK_EVERY_S = 1.0


class ActorSettings(Struct, frozen=True):
    """Settings of an actor. Actors with the same settings are interchangeable."""

    model: str
    pool: PoolConfig
    cost: ModelCost
    context_length: int
    profile: str
    keep_alive_s: float | None
    side_by_side: int = 1
    """Actors that share a node's cores; on the CPU each has its part of them."""
    worker_command: tuple[str, ...] | None = None


class RowToAnswer(Struct, frozen=True):
    """A row on its way to an actor, which has the model in a folder of its own."""

    ask: Ask
    expert: str | None
    notes: list[str]
    splits_thinking: bool


class ModelActor:
    """One model with its worker process. Ray runs its coroutines in one event loop."""

    def __init__(self, settings: ActorSettings) -> None:
        self._settings = settings
        if os.environ.get("CUDA_VISIBLE_DEVICES") == "":  # Ray hides the GPUs of actors that ask for none
            del os.environ["CUDA_VISIBLE_DEVICES"]
        self._spec: ModelSpec | None = None
        self._college: College | None = None
        self._watch: asyncio.Task[None] | None = None
        self._asked_at = time.monotonic()
        self._running = 0

    async def ready(self) -> str | RowFailure:
        """Check the model's files on this node; where it is, or why it is of no use here."""
        self._asked_at = time.monotonic()
        if self._watch is None:
            self._watch = asyncio.create_task(self._end_when_idle())
        try:
            self._open()
        except CoeError as error:
            return RowFailure.of(error)
        return socket.gethostname()

    async def answer(self, row: RowToAnswer) -> Answer | RowFailure:
        """The whole answer of one row, or why there is none."""
        self._running += 1
        try:
            return await self._answer(row)
        except Exception as error:
            return RowFailure.of(error)
        finally:
            self._running -= 1
            self._asked_at = time.monotonic()

    async def retire(self, idle_s: float) -> bool:
        """End, if nobody has asked anything for ``idle_s``."""
        if self._running or time.monotonic() - self._asked_at < idle_s:
            return False
        await self._end()
        return True

    async def _answer(self, row: RowToAnswer) -> Answer:
        spec = self._open()
        if self._college is None:
            settings, cores = self._settings, worker_threads()
            self._college = College(
                CollegeSettings(
                    settings.pool,
                    lambda spec: (settings.cost, settings.context_length),
                    worker_command=list(settings.worker_command) if settings.worker_command else None,
                    worker_threads=max(1, cores // settings.side_by_side) if on_host(spec.provider) else None,
                ),
                MemoryProbe(),
            )
        about = About(row.expert, spec.name, spec.provider, self._settings.profile, row.notes)
        collector, answer = Collector(about, splits_thinking=row.splits_thinking), None
        async with contextlib.aclosing(self._college.ask(structs.replace(row.ask, model=spec))) as events:
            async for event in events:
                answer = collector.feed(event)
        if answer is None:
            raise broken_off()
        return answer

    def _open(self) -> ModelSpec:
        if self._spec is None:
            models, name = folders().models, self._settings.model
            if name not in models_on_disk(models):
                raise ModelMissing(
                    f"model `{name}` is not on the disk of {socket.gethostname()}",
                    f"Fetch it there: coe models pull {name}",
                )
            self._spec = open_model(name, models / name)
        return self._spec

    async def _end_when_idle(self) -> None:
        keep_alive_s = self._settings.keep_alive_s
        while keep_alive_s is not None:
            await asyncio.sleep(min(_LOOK_EVERY_S, max(0.05, keep_alive_s / 4)))
            if not self._running and time.monotonic() - self._asked_at >= keep_alive_s:
                await self._end()

    async def _end(self) -> None:
        import ray

        if self._college is not None:
            await self._college.close()
        me: Any = ray.get_runtime_context().current_actor
        ray.kill(me)
