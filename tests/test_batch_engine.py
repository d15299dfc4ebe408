"""The engine over a college in this process, on real processes that misbehave: whole answers, retries, order, stopping, and nothing left over."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from byte_prompts import BytePrompts
from college_trial import POOL, SLOT_MB, WEIGHTS_MB, FakeProbe, NamedModels, living, spec_of
from conftest import MODEL, eventually
from faulty_worker import expected

from coe_cli.core.batch.batch_order import WORTH_A_REPLICA
from coe_cli.core.models.model_spec import ModelSpec
from coe_cli.core.scheduling.scheduler_state import ModelCost
from coe_cli.providers.settings import worker_threads
from coe_cli.runtime.batch.batch_engine import PreparedRow, RowResult
from coe_cli.runtime.batch.client_engine import ClientEngine, Lanes, client_engine
from coe_cli.runtime.client.local import LocalClient, LocalOptions, local_client
from coe_cli.runtime.college import college_events as ce
from coe_cli.runtime.college.chat_request import ChatRequest
from coe_cli.runtime.college.college_settings import CollegeSettings
from coe_cli.runtime.folders import catalog_paths, folders, profile_paths
from coe_cli.runtime.model_folder.on_disk import spec_from_folder
from coe_cli.runtime.planning.calibration_store import CalibrationStore
from coe_cli.runtime.planning.plan_inputs import calibration_of, memory_of
from coe_cli.runtime.settings import load_catalog, load_profiles
from coe_cli.runtime.worker.protocol import ChatMessage, Sampling


class Rows:
    """A source of so many rows for each model; it remembers in which order they were taken."""

    expert: str | None = "e"

    def __init__(self, folder: Path, counts: dict[str, int]) -> None:
        self._folder = folder
        self._waiting = {model: list(range(count)) for model, count in counts.items()}
        self.taken: list[str] = []
        self.prompts: dict[int, str] = {}

    def remaining(self) -> Mapping[str, int]:
        return {model: len(rows) for model, rows in self._waiting.items() if rows}

    def spec(self, model: str) -> ModelSpec:
        return spec_of(model, self._folder)

    def take(self, model: str) -> PreparedRow | RowResult | None:
        if not self._waiting[model]:
            return None
        prompt = f"{model} {self._waiting[model].pop(0)}"
        self.taken.append(model)
        line = len(self.taken)
        self.prompts[line] = prompt
        messages, sampling = [ChatMessage("user", prompt)], Sampling(seed=line)
        request = ChatRequest(messages, expert=self.expert, model=model, max_tokens=4, sampling=sampling)
        return PreparedRow(
            line, request, ce.Ask(self.spec(model), messages, max_tokens=4, sampling=sampling), self.expert
        )

    def right(self, result: RowResult) -> bool:
        return result.answer is not None and result.answer.answer == expected(self.prompts[result.line], result.line, 4)


@contextmanager
def engine(
    folder: Path,
    faults: dict[str, list[dict[str, Any]]] | None = None,
    *,
    retries: int = 2,
    side_by_side: int | None = None,
    **pool: Any,
) -> Iterator[ClientEngine]:
    """``side_by_side``: so many workers of one slot, as on the CPU."""
    (folder / "faults.json").write_text(json.dumps(faults or {}))
    command = [sys.executable, str(Path(__file__).with_name("faulty_worker.py")), str(folder)]
    cost = ModelCost(weights_mb=WEIGHTS_MB, kv_mb=SLOT_MB, max_slots=4)
    limits = msgspec.structs.replace(POOL, **pool)
    lanes = Lanes(side_by_side, 1) if side_by_side else Lanes(1, limits.max_concurrent_slots)
    settings = CollegeSettings(
        limits, lambda spec: (cost, 1024), worker_command=command, replicas=side_by_side, prompts=BytePrompts()
    )
    client = LocalClient(settings, FakeProbe(), NamedModels(folder))  # type: ignore[arg-type]
    made = ClientEngine(client, lanes, limits, settings.cost_of, retries=retries)
    try:
        yield made
    finally:
        made.close()


def test_every_row_has_its_answer_and_each_model_one_load(tmp_path: Path) -> None:
    """Four models in a budget for two; the slots' room is for one model's rows at a time."""
    rows = Rows(tmp_path, {"a": 5, "b": 30, "c": 20, "d": 10})
    with engine(tmp_path, vram_budget_mb=2 * WEIGHTS_MB + 6 * SLOT_MB) as running:
        results = list(running.run(rows))
        eventually(lambda: (running.status().loads, running.status().completion_tokens) == (4, 65 * 4))
    assert Counter(result.line for result in results) == Counter(range(1, 66))
    assert all(rows.right(result) for result in results)
    assert rows.taken == ["b"] * 30 + ["c"] * 20 + ["d"] * 10 + ["a"] * 5
    assert {len(list(tmp_path.glob(f"{model}.start-*"))) for model in "abcd"} == {1}
    assert results[0].answer is not None and results[0].answer.expert == "e"


CRASHES = {"a": [{"answer": "crash", "after": 7}, {"answer": "crash", "after": 2}, {}]}
"""The worker of the rows dies twice."""


def test_a_row_whose_workers_die_in_mid_answer_is_tried_again(tmp_path: Path) -> None:
    rows = Rows(tmp_path, {"a": 6})
    with engine(tmp_path, CRASHES) as running:
        results = list(running.run(rows))
    assert len(results) == 6 and all(rows.right(result) for result in results)
    assert len(list(tmp_path.glob("a.start-*"))) == 3


def test_without_retries_the_failure_is_the_rows_own(tmp_path: Path) -> None:
    rows = Rows(tmp_path, {"a": 6})
    with engine(tmp_path, {"a": [CRASHES["a"][0], {}]}, retries=0) as running:
        results = list(running.run(rows))
    failed = [result for result in results if result.failure is not None]
    assert len(results) == 6 and 1 <= len(failed) <= 4
    assert {result.failure.code for result in failed if result.failure} == {"device_lost"}
    assert all(rows.right(result) for result in results if result not in failed)


def test_a_model_that_cannot_be_loaded_costs_only_its_own_rows(tmp_path: Path) -> None:
    rows = Rows(tmp_path, {"bad": 3, "good": 4})
    with engine(tmp_path, {"bad": [{"load": "damaged"}]}) as running:
        results = list(running.run(rows))
    failed = [result for result in results if result.failure is not None]
    assert {result.model for result in failed} == {"bad"} and len(failed) == 3
    assert {result.failure.code for result in failed if result.failure} == {"model_damaged"}
    assert sum(rows.right(result) for result in results) == 4


def test_stop_lets_the_running_rows_end_and_takes_no_more(tmp_path: Path) -> None:
    rows = Rows(tmp_path, {"a": 500})
    with engine(tmp_path, {"a": [{"step_s": 0.01}]}) as running:
        results = []
        for result in running.run(rows):
            results.append(result)
            if len(results) == 3:
                running.stop()
    assert len(results) == len(rows.taken) <= 3 + 5
    assert all(rows.right(result) for result in results)


def test_close_drops_what_is_running(tmp_path: Path) -> None:
    rows = Rows(tmp_path, {"a": 500})
    with engine(tmp_path, {"a": [{"answer": "hang", "after": 18}]}) as running:
        iterator = running.run(rows)
        assert next(iterator).answer is not None
    eventually(lambda: not living(tmp_path))


def test_on_the_cpu_models_stand_side_by_side_and_copies_fill_up(tmp_path: Path) -> None:
    """Two places: both models at once, then the one with many rows gets a second worker; its answers name the model."""
    if worker_threads() < 2:
        pytest.skip("one core has one place")
    rows = Rows(tmp_path, {"large": 150, "small": 5})
    with engine(tmp_path, {"large": [{"step_s": 0.002}]}, side_by_side=2) as running:
        results = list(running.run(rows))
    assert len(results) == 155 and all(rows.right(result) for result in results)
    assert {result.model for result in results} == {"large", "small"}
    assert {result.answer.model for result in results if result.answer} == {"large", "small"}
    assert "small" in rows.taken[:6]
    assert {model: len(list(tmp_path.glob(f"{model}.start-*"))) for model in ("large", "small")} == {
        "large": 2,
        "small": 1,
    }


def test_on_the_cpu_few_rows_are_enough_for_a_second_worker_and_the_last_waits_for_who_is_free(tmp_path: Path) -> None:
    if worker_threads() < 2:
        pytest.skip("one core has one place")
    count = 2 * WORTH_A_REPLICA
    rows = Rows(tmp_path, {"a": count})
    with engine(tmp_path, side_by_side=2) as running:
        results, taken = [], []
        for result in running.run(rows):
            results.append(result)
            taken.append(len(rows.taken))
    assert len(results) == count and all(rows.right(result) for result in results)
    assert len(list(tmp_path.glob("a.start-*"))) == 2
    # Each worker has one row more than it writes, but the last one is given to whichever has none.
    assert taken[: count - 4] == [min(number + 4, count - 1) for number in range(count - 4)]
    assert taken[count - 4] == count - 1


@pytest.mark.long
def test_what_two_workers_of_one_model_take_is_recorded_as_that_models(
    models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if worker_threads() < 2:
        pytest.skip("one core has one place")
    monkeypatch.setenv("COE_STATE_DIR", str(tmp_path))
    spec = spec_from_folder(MODEL, models_dir / MODEL)

    class RealRows(Rows):
        expert = None

        def spec(self, model: str) -> ModelSpec:
            return spec

    rows = RealRows(tmp_path, {MODEL: 2 * WORTH_A_REPLICA})
    monkeypatch.setenv("COE_MODELS_DIR", str(models_dir))
    catalog = load_catalog(catalog_paths())
    profile = load_profiles(profile_paths()).select("embedded")

    def client(replicas: int | None) -> tuple[LocalClient, bool]:
        return local_client(catalog, profile, options=LocalOptions(batch=True, replicas=replicas)), True

    running = client_engine(rows, catalog, profile, client, retries=0)
    try:
        results = list(running.run(rows))
    finally:
        running.close()
    assert all(result.answer is not None for result in results)
    memory = memory_of(spec)
    store = CalibrationStore(folders().state)
    # Two loads, and the first answer of each.
    eventually(lambda: (found := calibration_of(memory, store.read())) is not None and found.records == 4)
    found = calibration_of(memory, store.read())
    assert found is not None and found.load_bytes == pytest.approx(memory.on.load_bytes(memory), rel=0.15)
