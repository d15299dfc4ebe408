"""The plan of a whole worker against its peak, after many prompts: for `plan_accuracy.py worker`.

Each row is one worker process of coe's own that answers several prompts of different lengths, one after another or several
at once. Predicted is what `coe vram plan` says for the model and its slots, whatever is asked; measured is the process's peak
resident set.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coe_cli.core.hardware.profile import PerSlotEstimate
from coe_cli.core.memory.footprint import ExactAccounting, FormulaAccounting
from coe_cli.core.models.model_spec import BYTES_PER_MB
from coe_cli.providers.installed import runtime_version
from coe_cli.runtime.bench.bench_worker import BenchWorker
from coe_cli.runtime.college.memory_probe import RssProbe
from coe_cli.runtime.model_folder.on_disk import spec_from_folder
from coe_cli.runtime.planning.plan_inputs import memory_of

ANSWER_TOKENS = 8
TOKEN_STRIDE = 23
TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Life:
    """What one worker is asked: each item holds the lengths of the prompts that it answers at once."""

    name: str
    context_length: int
    items: tuple[tuple[int, ...], ...]

    @property
    def slots(self) -> int:
        return max(len(item) for item in self.items)


def _alone(*lengths: int) -> tuple[tuple[int, ...], ...]:
    return tuple((length,) for length in lengths)


_random = random.Random(7)
LIVES = (
    Life("10 lengths from 16 to 1500", 2048, _alone(16, 512, 300, 1024, 100, 900, 700, 37, 513, 1500)),
    Life("the same, the longest first", 2048, _alone(1500, 1024, 900, 700, 513, 512, 300, 100, 37, 16)),
    Life("60 random lengths up to 900", 1024, _alone(*(_random.randrange(2, 900) for _ in range(60)))),
    Life("long ones, then short ones", 8192, _alone(4096, 16, 3000, 512, 37, 700)),
    Life("2 at once, 6 times", 2048, ((16, 16), (512, 300), (1024, 700), (1500, 900), (37, 1200), (1500, 1500))),
    Life("3 at once, 3 times", 4096, ((100, 600, 1500), (2000, 37, 512), (900, 900, 900))),
)
SHORT_LIVES = (LIVES[0], LIVES[4])


def measure_life(name: str, folder: Path, life: Life) -> dict[str, Any]:
    """Predicted and measured megabytes of one worker; ``error`` is predicted ÷ measured − 1."""
    spec = spec_from_folder(name, folder)
    memory, counting = memory_of(spec, "cpu"), ExactAccounting()
    slots = [counting.slot(memory, life.context_length, before=number) for number in range(life.slots)]
    load = counting.weights_bytes(memory)
    with BenchWorker(TIMEOUT_S) as worker:
        worker.load(spec, life.slots)
        for number, lengths in enumerate(life.items):
            prompts = [_prompt(spec.shape.vocab_size, length, (number, index)) for index, length in enumerate(lengths)]
            worker.answer(prompts, ANSWER_TOKENS, life.context_length)
        measured_mb = RssProbe().process_peak_mb(worker.pid)
    assert measured_mb is not None
    predicted_mb = (load + sum(slot.total_bytes for slot in slots)) / BYTES_PER_MB
    formula = FormulaAccounting(PerSlotEstimate()).slot(memory, life.context_length, 1).total_bytes
    return {
        "model": name,
        "prunes_logits": not memory.logits_for_every_token,
        "prompts": life.name,
        "context_length": life.context_length,
        "slots": life.slots,
        "load_mb": round(load / BYTES_PER_MB, 1),
        "kv_mb": round(sum(slot.kv_bytes for slot in slots) / BYTES_PER_MB, 1),
        "activation_mb": round(sum(slot.activation_bytes for slot in slots) / BYTES_PER_MB, 1),
        "predicted_mb": round(predicted_mb, 1),
        "measured_mb": round(measured_mb, 1),
        "error": round(predicted_mb / measured_mb - 1, 4),
        "formula_mb": round((spec.weights_bytes + life.slots * formula) / BYTES_PER_MB, 1),
        "guide_mb": 8000.0 * life.slots,
        "oga": runtime_version("cpu"),
    }


def _prompt(vocabulary: int, length: int, seed: Sequence[int]) -> list[int]:
    """Token ids spread over the vocabulary, another beginning for each seed."""
    start = random.Random(str(seed)).randrange(vocabulary)
    return [(start + TOKEN_STRIDE * index) % (vocabulary - 10) + 5 for index in range(length)]


HEADER = ("model", "logits", "context", "slots", "prompts", "load", "KV", "activations", "predicted", "measured",
          "error", "formula", "guide")  # fmt: skip


def worker_cells(row: dict[str, Any]) -> tuple[object, ...]:
    """One line of the table under ``HEADER``."""
    return (
        row["model"],
        "last" if row["prunes_logits"] else "all",
        row["context_length"],
        row["slots"],
        row["prompts"],
        *(f"{row[key]:.0f}" for key in ("load_mb", "kv_mb", "activation_mb", "predicted_mb", "measured_mb")),
        f"{row['error']:+.1%}",
        *(f"{row[key]:.0f}" for key in ("formula_mb", "guide_mb")),
    )
