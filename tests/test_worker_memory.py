"""The plan of a worker against a real one that lives on: prompts of many lengths, two at once, and long ones under a grammar."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import MODEL

from coe_cli.core.memory.footprint import ExactAccounting
from coe_cli.core.models.model_spec import BYTES_PER_MB
from coe_cli.providers.installed import runtime_version
from coe_cli.runtime.college.memory_probe import RssProbe
from coe_cli.runtime.model_folder.on_disk import spec_from_folder
from coe_cli.runtime.planning.plan_inputs import memory_of
from coe_cli.runtime.worker import protocol
from coe_cli.runtime.worker.single_worker import load_message
from coe_cli.runtime.worker.worker_process import WorkerProcess

CONTEXT_LENGTH = 2048
PROMPTS = ((16,), (512,), (300,), (1024,), (1500,), (520, 260))
"""With memory patterns on, the fifth made the arena 22 MB larger."""

GRAMMAR = protocol.Guidance("regex", "[a-z]{3}")
TIMEOUT_S = 240.0

_starts = itertools.count(step=1000)


def ask(worker: WorkerProcess, lengths: Sequence[int], guidance: protocol.Guidance | None = None) -> float:
    """Have prompts of ``lengths`` tokens answered at once; the worker's peak so far, in MB."""
    for number, (length, start) in enumerate(zip(lengths, _starts, strict=False)):
        worker.send(
            protocol.Generate(
                request_id=number,
                context_length=CONTEXT_LENGTH,
                max_tokens=4,
                sampling=protocol.Sampling(temperature=0.0),
                guidance=guidance,
                prompt_ids=[5 + (start + 23 * at) % 49_000 for at in range(length)],
            )
        )
    done = 0
    while done < len(lengths):
        message = worker.receive(TIMEOUT_S)
        assert not isinstance(message, protocol.Failed), message
        done += isinstance(message, protocol.Done)
    peak_mb = RssProbe().process_peak_mb(worker.pid)
    assert peak_mb is not None
    return peak_mb


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="the figures are those of Linux")
@pytest.mark.skipif((runtime_version("cpu") or "") < "0.18", reason="older releases take more (docs/memory.md)")
def test_the_peak_of_a_worker_stays_within_its_plan(models_dir: Path) -> None:
    spec = spec_from_folder(MODEL, models_dir / MODEL)
    memory, counting = memory_of(spec, "cpu"), ExactAccounting()
    slots = [counting.slot(memory, CONTEXT_LENGTH, before=number) for number in range(2)]
    planned_mb = (counting.weights_bytes(memory) + sum(slot.total_bytes for slot in slots)) / BYTES_PER_MB
    worker = WorkerProcess()
    try:
        worker.send(load_message(spec, slots=2))
        while not isinstance(worker.receive(TIMEOUT_S), protocol.Loaded):
            pass
        for lengths in PROMPTS:
            peak_mb = ask(worker, lengths)
        assert peak_mb <= 1.02 * planned_mb, "the plan is an upper bound"
        assert peak_mb >= 0.95 * planned_mb
        with_grammar_mb = ask(worker, (16,), GRAMMAR)
        # 0 to 28 MB more in pieces, 72 to 99 MB more in one
        assert ask(worker, (1900,), GRAMMAR) <= with_grammar_mb + 45, "it is run in pieces too"
    finally:
        worker.kill()
