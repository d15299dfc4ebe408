"""When a loaded model goes: idle for its time, at once for one that is asked for, protected only where others wait for both."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import MODEL, Coe, eventually, is_gone, sleeping_model
from serving import Served, serving

from coe_cli.core.scheduling.scheduler_state import PoolConfig
from coe_cli.output.answer_sink import AnswerSink
from coe_cli.output.console import Output

OTHER = "other"
PROFILE = """
default_profile: small
profiles:
  small:
    vram_budget_mb: {budget_mb}
    max_concurrent_slots: 1
    context_length: 1024
    provider: cpu
    preload_enabled: false
{more}
vram_components:
  fixed_overhead: {{bge_m3_embeddings: 0, system_overhead: 0, total: 0}}
eviction_policy: {{min_resident_seconds: 86400, retry_delay_seconds: 1}}
"""


def served_by(coe: Coe, budget_mb: int, more: str = "") -> contextlib.AbstractContextManager[Served]:
    """A college of one slot for two models, which never takes a young model from those who wait for it."""
    for name in (MODEL, OTHER):
        sleeping_model(coe, name, step_s=0.03)
    (coe.config / "hardware_profiles.yaml").write_text(PROFILE.format(budget_mb=budget_mb, more=more))
    return serving(coe, COE_NO_SERVE="0")


@pytest.fixture(scope="module")
def served(home: Coe, models_dir: Path) -> Iterator[Served]:
    """One that holds one of the models."""
    home.sleep()
    with served_by(home, 500) as running:
        yield running


def loaded(served: Served) -> dict[str, Any]:
    return {model["name"]: model for model in served.snapshot()["models"]}


def ask(served: Served, model: str) -> None:
    assert served.chat(model=model, max_tokens=2).status == 200


@contextlib.contextmanager
def held_slot(served: Served, model: str) -> Iterator[None]:
    """An answer that goes on until its reader leaves."""
    connection = served.connect()
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 900, "stream": True}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    response: http.client.HTTPResponse = connection.getresponse()
    assert response.readline()
    try:
        yield
    finally:
        response.close()
        connection.close()


@pytest.mark.long
def test_a_model_goes_when_it_was_idle_for_its_time_and_one_that_is_to_stay_stays(sleeper: Coe) -> None:
    (sleeper.config / "experts.yaml").write_text(f"models:\n  {MODEL}: {{keep_alive: never}}\n")
    with served_by(sleeper, 2000, more="    model_keep_alive: 1s") as served:
        for name in (MODEL, OTHER):
            ask(served, name)
        eventually(lambda: list(loaded(served)) == [MODEL])
        ask(served, OTHER)


def test_keep_alive_0_over_http_unloads_at_once(served: Served) -> None:
    ask(served, MODEL)
    worker = psutil.Process(loaded(served)[MODEL]["pid"])
    ended = served.request("POST", "/api/generate", {"model": MODEL, "keep_alive": 0, "stream": False}).json
    assert (ended["done"], ended["done_reason"]) == (True, "unload")
    eventually(lambda: is_gone(worker) and not loaded(served))


def test_an_idle_model_makes_room_at_once(served: Served) -> None:
    """However young it is: else the second question would wait for ever."""
    for name in (MODEL, OTHER, MODEL):
        ask(served, name)
        assert list(loaded(served)) == [name]


@pytest.mark.long
def test_a_young_model_is_protected_while_others_wait_for_both(served: Served) -> None:
    """More questions than may bypass one that waits for memory; once nobody waits for the young model, it goes."""
    answered: list[str] = []

    def answer(name: str) -> None:
        ask(served, name)
        answered.append(name)

    def queued(count: int) -> bool:
        return bool(served.snapshot()["queue_length"] == count)

    names = [OTHER] + [MODEL] * (PoolConfig(1).max_bypasses + 6)
    with held_slot(served, MODEL):
        threads = [threading.Thread(target=answer, args=[name]) for name in names]
        for count, thread in enumerate(threads, 1):
            thread.start()
            eventually(partial(queued, count))
    for thread in threads:
        thread.join(200)
    assert answered == names[1:] + names[:1]


def test_ask_says_what_it_waits_for(served: Served) -> None:
    with held_slot(served, MODEL):
        arguments = ("ask", "-m", MODEL, "--max-tokens", "2", "Hi")
        process = served.coe.start(*arguments, environment={"COE_NO_SERVE": "0", "COE_PATIENCE_S": "0"})
        assert process.stderr is not None
        said = [process.stderr.readline() for _ in range(2)]
        assert said[-1] == b"coe: waiting (slots, 0 ahead)\n"
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0 and out


class _Timer:
    """A timer whose time the test lets come."""

    made: list[_Timer]

    def __init__(self, after_s: float, call: Any, arguments: list[Any]) -> None:
        self.after_s, self._call, self._arguments = after_s, call, arguments
        self.is_cancelled = False
        self.made.append(self)

    def start(self) -> None:
        pass

    def cancel(self) -> None:
        self.is_cancelled = True

    def ring(self) -> None:
        if not self.is_cancelled:
            self._call(*self._arguments)


@pytest.mark.parametrize(
    ("phases", "waits", "said"),
    [
        (["waiting (slots, 0 ahead)"], True, "coe: waiting (slots, 0 ahead)\n"),
        (["waiting (slots, 1 ahead)", "waiting (memory, 0 ahead)"], True, "coe: waiting (memory, 0 ahead)\n"),
        (["loading", "reading the prompt"], True, "coe: reading the prompt\n"),
        (["loading"], True, "coe: loading the model\n"),
        (["waiting (slots, 0 ahead)"], False, ""),
    ],
)
def test_waiting_is_said_once_it_has_lasted_a_second(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    phases: list[str],
    waits: bool,
    said: str,
) -> None:
    monkeypatch.setattr(threading, "Timer", _Timer)
    monkeypatch.delenv("COE_PATIENCE_S")
    _Timer.made = []
    sink = AnswerSink(Output(), says_waiting=waits)
    for phase in phases:
        sink.phase(phase, 0)
    for timer in _Timer.made:
        assert timer.after_s == 1
        timer.ring()
    assert capsys.readouterr() == ("", said)
