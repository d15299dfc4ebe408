"""A college on the worker that misbehaves, for tests of reliability."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import psutil
from byte_prompts import BytePrompts
from conftest import command_of, eventually
from faulty_worker import expected

from coe_cli.core.models.catalog import ModelShape
from coe_cli.core.models.model_spec import ModelSpec
from coe_cli.core.scheduling.scheduler_state import ModelCost, PoolConfig
from coe_cli.errors import CoeError
from coe_cli.runtime.college import college_events as ce
from coe_cli.runtime.college.chat_request import AnswerFields, ChatRequest, Resolved
from coe_cli.runtime.college.college import College
from coe_cli.runtime.college.college_settings import CollegeSettings
from coe_cli.runtime.college.memory_probe import MemoryProbe
from coe_cli.runtime.college.resolver import ResolvedRequest
from coe_cli.runtime.worker.protocol import ChatMessage, Sampling

WEIGHTS_MB, SLOT_MB = 100, 10
PATIENCE_S = 60.0
"""Allowed to a load and between two tokens: nothing but a worker that hangs takes so long on any machine."""
POOL = PoolConfig(vram_budget_mb=1000, max_concurrent_slots=4, min_residency_s=0.0, retry_delay_s=0.05, give_up_s=0.3)


class FakeProbe(MemoryProbe):
    """Every worker holds the same; other programs and memory that did not come back are set by the test."""

    def __init__(self, worker_mb: float = WEIGHTS_MB + SLOT_MB) -> None:
        self.worker_mb = worker_mb
        self.other_mb = 0.0
        self.peak_mb = 0.0

    def used_mb(self, pids: Iterable[int]) -> float | None:
        used_mb = self.other_mb + self.worker_mb * len(list(pids))
        self.peak_mb = max(self.peak_mb, used_mb)
        return used_mb

    def process_mb(self, pid: int) -> float | None:
        return self.worker_mb


@dataclass
class Outcome:
    """What became of one request."""

    prompt: str
    seed: int | None = None
    tokens: int = 8
    text: str = ""
    error: CoeError | None = None
    events: list[ce.CollegeEvent] = field(default_factory=list)

    @property
    def right(self) -> bool:
        """Complete, and the same as from a worker that is left alone."""
        return self.error is None and self.text == expected(self.prompt, self.seed, self.tokens)

    def count(self, kind: type[Any]) -> int:
        return sum(isinstance(event, kind) for event in self.events)


def spec_of(name: str, folder: Path, weights_mb: int = WEIGHTS_MB) -> ModelSpec:
    shape = ModelShape(
        num_hidden_layers=1,
        hidden_size=64,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_size=64,
        vocab_size=100,
    )
    return ModelSpec(name, "disk", "cpu", 4096, shape, weights_mb * 2**20, folder / name)


class NamedModels:
    """A resolver for requests that name expert and model; every model is there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def only_model(self, request: ChatRequest) -> None:
        return None

    async def resolve(self, request: ChatRequest, loaded_models: Any) -> ResolvedRequest:
        assert request.model is not None and request.expert is not None
        names = ("messages", *AnswerFields.__struct_fields__)
        ask = ce.Ask(spec_of(request.model, self._folder), **{name: getattr(request, name) for name in names})
        told = Resolved(request.model, "cpu", "embedded", request.expert, [request.expert], [], 1024)
        return ResolvedRequest(ask, told)


def runs_in(pid: int, folder: Path) -> bool:
    """Whether a worker with the fault plan in ``folder`` has this id: on Windows another process may have it soon after."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return str(folder) in command_of(psutil.Process(pid))
    return False


def living(folder: Path) -> list[int]:
    """Ids of the workers with the fault plan in ``folder`` that live, in the order of their starts."""
    path = folder / "pids"
    return [pid for pid in map(int, path.read_text().split()) if runs_in(pid, folder)] if path.exists() else []


class Trial:
    """One college with its fault plan; used inside a loop."""

    def __init__(self, college: College, folder: Path, memory_probe: FakeProbe) -> None:
        self.college = college
        self.probe = memory_probe
        self._folder = folder
        self.changed: dict[str, int] = {}
        """Models whose weights now have another size, in MB."""
        self.asked: list[Outcome] = []

    async def ask(
        self,
        model: str = "one",
        *,
        tokens: int = 8,
        seed: int | None = None,
        prompt: str | None = None,
        buffered: bool = False,
    ) -> Outcome:
        outcome = Outcome(prompt or f"question {len(self.asked) + 1}", seed, tokens)
        self.asked.append(outcome)
        request = ce.Ask(
            spec_of(model, self._folder, self.changed.get(model, WEIGHTS_MB)),
            [ChatMessage("user", outcome.prompt)],
            max_tokens=tokens,
            sampling=Sampling(seed=seed),
            buffered=buffered,
        )
        try:
            async for event in self.college.ask(request):
                outcome.events.append(event)
                if isinstance(event, ce.Delta):
                    outcome.text += event.text
        except CoeError as error:
            outcome.error = error
        return outcome

    def living(self) -> list[int]:
        return living(self._folder)

    def starts(self, model: str) -> int:
        return len(list(self._folder.glob(f"{model}.start-*")))

    async def settled(self) -> None:
        """Wait until no slot is taken, and check that nothing but loaded holds memory."""
        deadline = time.monotonic() + 200
        while True:
            now = self.college.snapshot()
            states = {model.name: model.state for model in now.models}
            if now.running == now.queue_length == 0 and not {"loading", "evicting"} & set(states.values()):
                break
            assert time.monotonic() < deadline, now
            await asyncio.sleep(0.01)
        loaded = [name for name, state in states.items() if state == "ready"]
        assert all(model.reserved_mb in (0, WEIGHTS_MB) for model in now.models)
        assert now.reserved_mb == sum(model.held_mb for model in now.models)
        assert set(self.college.workers()) == set(loaded)
        assert not self.college.busy


@asynccontextmanager
async def trial(
    folder: Path,
    faults: dict[str, list[dict[str, Any]]] | None = None,
    *,
    memory_probe: FakeProbe | None = None,
    keep_warm_worker: bool = False,
    clock: Callable[[], float] = time.monotonic,
    skips_hangs: bool = False,
    **pool: Any,
) -> AsyncIterator[Trial]:
    """A college on faulty workers; afterwards no process of it is left. ``skips_hangs``: time flies while one of them hangs."""
    folder.mkdir(exist_ok=True)
    (folder / "faults.json").write_text(json.dumps(faults or {}))
    settings = CollegeSettings(
        pool=msgspec.structs.replace(POOL, **pool),
        cost_of=lambda spec: (ModelCost(spec.weights_bytes / 2**20, SLOT_MB, max_slots=4), 1024),
        load_timeout_s=PATIENCE_S,
        watchdog_s=PATIENCE_S,
        keep_warm_worker=keep_warm_worker,
        prompts=BytePrompts(),
        worker_command=[sys.executable, str(Path(__file__).with_name("faulty_worker.py")), str(folder)],
    )
    probe = memory_probe or FakeProbe()
    college = College(settings, probe, clock)
    it = Trial(college, folder, probe)
    skipping = asyncio.create_task(_skip_hangs(folder)) if skips_hangs else None
    try:
        yield it
    finally:
        if skipping is not None:
            skipping.cancel()
        await college.close()
    eventually(lambda: not it.living())  # what was killed and is nobody's child here ends a moment later


async def _skip_hangs(folder: Path) -> None:
    """Let what waits in this loop be due sooner as long as a worker hangs, however long the machine takes to start one."""
    while True:
        if any(runs_in(int(path.name.partition("-")[2]), folder) for path in folder.glob("hangs-*")):
            pass_s(PATIENCE_S / 3)
        await asyncio.sleep(0.02)


def pass_s(seconds: float) -> None:
    """Let the time of the running loop be later by so much."""
    loop = asyncio.get_running_loop()
    later_s = loop.time() - time.monotonic() + seconds
    loop.time = lambda: time.monotonic() + later_s  # type: ignore[method-assign]


def run(test: Callable[[], Awaitable[None]]) -> None:
    """Run a coroutine as a test; a task that fails unseen fails it."""
    unseen: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: unseen.append(context))
        await test()

    asyncio.run(main())
    assert unseen == []
