"""Several experts asked at once, with workers that misbehave: one failing is not the end of the others."""

from __future__ import annotations

import _thread
import itertools
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from byte_prompts import BytePrompts
from college_trial import POOL, SLOT_MB, WEIGHTS_MB, FakeProbe, NamedModels, living
from conftest import eventually
from faulty_worker import expected

from coe_cli.core.routing.synthesis import Draft
from coe_cli.core.scheduling.scheduler_state import ModelCost
from coe_cli.errors import ModelMissing
from coe_cli.runtime.client.fan_out import Job, fan_out
from coe_cli.runtime.client.local import LocalClient
from coe_cli.runtime.college.chat_request import ChatRequest
from coe_cli.runtime.college.college_settings import CollegeSettings
from coe_cli.runtime.worker.protocol import ChatMessage


class Notes:
    """A renderer that remembers."""

    def __init__(self) -> None:
        self.times: dict[int, list[int]] = {}
        """Counted events and not seconds: two are at one reading of Windows' clock."""
        self._events = itertools.count()
        self.text: dict[int, str] = {}
        self.tokens: Counter[int] = Counter()
        self.ended: list[int] = []
        self.phases: dict[int, list[str]] = {}

    def phase(self, number: int, name: str, worker_pid: int) -> None:
        self.phases.setdefault(number, []).append(name)

    def wrote(self, number: int, tokens: int) -> None:
        self.tokens[number] += tokens

    def delta(self, number: int, text: str, *, is_thinking: bool) -> None:
        self.times.setdefault(number, []).append(next(self._events))
        self.text[number] = self.text.get(number, "") + text

    def done(self, number: int, draft: Draft) -> None:
        self.ended.append(number)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    clients: list[LocalClient] = []

    def make(faults: dict[str, list[dict[str, Any]]] | None = None, **settings: Any) -> LocalClient:
        (tmp_path / "faults.json").write_text(json.dumps(faults or {}))
        college = CollegeSettings(
            pool=POOL,
            cost_of=lambda spec: (
                ModelCost(weights_mb=WEIGHTS_MB, kv_mb=SLOT_MB, max_slots=settings.get("slots", 4)),
                1024,
            ),
            load_timeout_s=30.0,
            watchdog_s=settings.get("watchdog_s", 30.0),
            prompts=BytePrompts(),
            worker_command=[sys.executable, str(Path(__file__).with_name("faulty_worker.py")), str(tmp_path)],
        )
        clients.append(LocalClient(college, FakeProbe(), NamedModels(tmp_path)))  # type: ignore[arg-type]
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def job(expert: str, model: str, tokens: int = 8, problem: Any = None) -> Job:
    request = ChatRequest([ChatMessage("user", f"ask {expert}")], expert=expert, model=model, max_tokens=tokens)
    return Job(expert, model, "cpu", request, problem)


def test_experts_of_one_model_write_side_by_side(start: Any, tmp_path: Path) -> None:
    renderer = Notes()
    jobs = [job(name, "one", tokens=30) for name in ("a", "b", "c")]
    drafts = fan_out(jobs, start({"one": [{"side_by_side": 3, "step_s": 0.01}]}), renderer)
    assert [draft.expert for draft in drafts] == ["a", "b", "c"]
    for number, draft in enumerate(drafts):
        assert draft.error is None
        assert draft.answer == expected(f"ask {draft.expert}", None, 30).strip("\n")
        assert renderer.text[number].strip() == draft.answer.strip()
        assert draft.usage is not None and draft.usage.completion_tokens == 30
        assert draft.timing is not None and draft.timing.total_s > 0
    assert renderer.tokens == Counter(dict.fromkeys(range(len(drafts)), 30))
    firsts, lasts = [t[0] for t in renderer.times.values()], [t[-1] for t in renderer.times.values()]
    assert max(firsts) < min(lasts), "all had begun before one had ended"
    assert sorted(renderer.ended) == [0, 1, 2]


def test_one_without_a_slot_is_waiting_once_the_load_is_over(start: Any, tmp_path: Path) -> None:
    renderer = Notes()
    jobs = [job(name, "one", tokens=30) for name in ("a", "b", "c")]
    fan_out(jobs, start({"one": [{"load_s": 1.0, "step_s": 0.01}]}, slots=2), renderer)
    (late,) = {0, 1, 2} - set(sorted(renderer.times, key=lambda number: renderer.times[number][0])[:2])
    # Who comes before the load begins is told "loading", who comes during it "waiting (loading, …)".
    assert renderer.phases[late][-2:] == ["waiting (slots, 0 ahead)", "reading the prompt"]
    assert "loading" in renderer.phases[late][-3]
    for number in {0, 1, 2} - {late}:
        assert "loading" in renderer.phases[number][-2]
        assert renderer.phases[number][-1] == "reading the prompt"
    assert renderer.times[late][0] > min(times[-1] for times in renderer.times.values()), "it had to wait"


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ({"load": "damaged"}, "model_damaged"),
        ({"load": "oom"}, "out_of_memory"),
        ({"answer": "crash", "after": 2}, "device_lost"),
        ({"answer": "garbage", "after": 2}, "device_lost"),
    ],
)
def test_one_that_fails_says_why_and_the_others_go_on(
    start: Any, tmp_path: Path, fault: dict[str, Any], code: str
) -> None:
    jobs = [job("good", "one"), job("bad", "two"), job("fine", "one")]
    drafts = fan_out(jobs, start({"two": [fault]}), Notes())
    assert [draft.error is None for draft in drafts] == [True, False, True]
    error = drafts[1].error
    assert error is not None and error.code == code and error.message
    assert (drafts[1].answer, drafts[1].usage, drafts[1].timing) == ("", None, None)
    assert drafts[0].answer == expected("ask good", None, 8).strip("\n")


def test_one_that_cannot_even_be_asked_fails_alone(start: Any, tmp_path: Path) -> None:
    missing = ModelMissing("it is not there", "Fetch it.")
    drafts = fan_out([job("gone", "two", problem=missing), job("good", "one")], start(), Notes())
    assert drafts[0].error is not None
    assert (drafts[0].error.code, drafts[0].error.hint) == ("model_missing", "Fetch it.")
    assert drafts[1].error is None


def test_an_interrupt_ends_all_of_them(start: Any, tmp_path: Path) -> None:
    renderer = Notes()
    jobs = [job(name, "one", tokens=10_000) for name in ("a", "b")]

    def interrupt() -> None:
        while len(renderer.times) < 2:
            time.sleep(0.01)
        _thread.interrupt_main()

    client = start({"one": [{"step_s": 0.01}]})
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        fan_out(jobs, client, renderer)
    assert (tmp_path / "pids").read_text()
    eventually(lambda: not living(tmp_path))
