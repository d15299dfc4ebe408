"""What real loads and first answers took, written beside what the plan said: the next plan uses it.

A worker's memory is read right after its load and right after its first answer, when caches and pools are as the plan
describes them; everything else waits for a thread. Loads that open a slot at once and answers beside others are left out.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

from msgspec import Struct

from coe_cli.core.hardware.profile import Provider
from coe_cli.core.memory.calibration import CalibrationRecord
from coe_cli.core.memory.footprint import ModelMemory
from coe_cli.core.models.model_spec import BYTES_PER_MB, ModelSpec
from coe_cli.providers.installed import runtime_version
from coe_cli.runtime.college.memory_probe import MemoryProbe, device_probe
from coe_cli.runtime.folders import folders
from coe_cli.runtime.planning.calibration_store import CalibrationStore, model_digest
from coe_cli.runtime.planning.plan_inputs import memory_of

MAX_SAMPLES = 64


class _Sample(Struct):
    """A worker since its load. ``crowded``: it has opened more than one slot."""

    load_mb: float
    answers_begun: int = 0
    crowded: bool = False


class CalibrationRecorder:
    """Records into ``store``; use from one thread. A measurement that cannot be made or written is left out silently."""

    def __init__(self, store: CalibrationStore | None = None, clock: Callable[[], float] = time.time) -> None:
        self._store = store or CalibrationStore(folders().state)
        self._clock = clock
        self._samples: dict[int, _Sample] = {}
        self._probes: dict[Provider, MemoryProbe] = {}
        self._writers: list[threading.Thread] = []

    def loaded(self, spec: ModelSpec, pid: int) -> None:
        """The worker ``pid`` has loaded ``spec`` and done nothing else."""
        measured_mb = self._process_mb(spec.provider, pid)
        if measured_mb is None:
            return
        while len(self._samples) >= MAX_SAMPLES:
            del self._samples[next(iter(self._samples))]
        self._samples[pid] = _Sample(measured_mb)
        self._write(spec, "load", measured_mb)

    def begun(self, pid: int, *, beside: bool) -> None:
        """The worker begins an answer, ``beside`` another one or not."""
        sample = self._samples.get(pid)
        if sample is not None:
            sample.answers_begun += 1
            sample.crowded = sample.crowded or beside

    def answered(self, spec: ModelSpec, pid: int, context_length: int, prompt_tokens: int) -> None:
        """The worker has ended an answer; only the first one of a worker is measured."""
        sample = self._samples.get(pid)
        if sample is None or sample.crowded or sample.answers_begun != 1 or prompt_tokens < 1:
            return
        del self._samples[pid]
        measured_mb = self._process_mb(spec.provider, pid)
        if measured_mb is not None and measured_mb > sample.load_mb:
            self._write(spec, "generation", measured_mb - sample.load_mb, context_length, prompt_tokens)

    def wait(self, timeout_s: float = 5.0) -> None:
        """Until everything is written."""
        for writer in self._writers:
            writer.join(timeout_s)
        self._writers.clear()

    def _process_mb(self, provider: Provider, pid: int) -> float | None:
        if provider not in self._probes:
            self._probes[provider] = device_probe(provider)
        return self._probes[provider].process_mb(pid)

    def _write(
        self, spec: ModelSpec, kind: str, measured_mb: float, context_length: int = 0, prompt_tokens: int = 0
    ) -> None:
        adapter = self._probes[spec.provider].name or spec.provider
        at_s = self._clock()

        def write() -> None:
            with contextlib.suppress(OSError):
                memory = memory_of(spec)
                if memory.block_tokens:
                    return  # its load makes the cache of all slots, too
                predicted = _predicted_bytes(memory, kind, context_length, prompt_tokens)
                self._store.record(
                    CalibrationRecord(
                        model_digest=model_digest(spec.folder, spec.graph) if spec.folder is not None else "",
                        provider=spec.provider,
                        runtime_version=runtime_version(spec.provider) or "unknown",
                        adapter=adapter,
                        kind="load" if kind == "load" else "generation",
                        predicted_bytes=predicted,
                        measured_bytes=round(measured_mb * BYTES_PER_MB),
                        at_s=at_s,
                        context_length=context_length,
                        prompt_tokens=prompt_tokens,
                    )
                )

        self._writers = [writer for writer in self._writers if writer.is_alive()]
        self._writers.append(threading.Thread(target=write, daemon=True))
        self._writers[-1].start()


def _predicted_bytes(memory: ModelMemory, kind: str, context_length: int, prompt_tokens: int) -> int:
    on = memory.on
    if kind == "load":
        return on.load_bytes(memory)
    return on.kv_cache_bytes(memory, context_length) + on.activation_bytes(memory, context_length, prompt_tokens)
