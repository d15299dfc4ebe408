"""Paged models: answers that share each run, on ONNX Runtime GenAI's own engine, in a worker as a college drives it.

The tiny model guesses each token from the one before it, so its paged graph runs on the CPU and has the answers of the other one.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as oga
import pytest
from byte_prompts import BytePrompts
from college_trial import FakeProbe
from model_store.tiny_model import write_tiny_model

from coe_cli.core.scheduling.scheduler_state import ModelCost, PoolConfig
from coe_cli.runtime.college import college_events as ce
from coe_cli.runtime.college.college import College
from coe_cli.runtime.college.college_settings import CollegeSettings
from coe_cli.runtime.model_folder.on_disk import spec_from_folder
from coe_cli.runtime.worker import protocol
from coe_cli.runtime.worker.engine import EngineSlots
from coe_cli.runtime.worker.single_worker import load_message
from coe_cli.runtime.worker.worker_process import WorkerProcess

pytestmark = pytest.mark.skipif(
    not hasattr(oga, "TurnOptions"), reason="ONNX Runtime GenAI before 0.18 has no such engine"
)
CONTEXT, SLOTS = 512, 4
PROMPTS = [[65 + n, *range(100, 100 + 11 * n)] for n in range(SLOTS)]
PAGED = [sys.executable, str(Path(__file__).parent / "paged_worker.py")]
GREEDY = protocol.Sampling(temperature=0)


def started(folder: Path, command: list[str] | None) -> WorkerProcess:
    worker = WorkerProcess(command)
    worker.send(load_message(spec_from_folder("tiny", folder), SLOTS, context_length=CONTEXT))
    return worker


def told(worker: WorkerProcess, until: int = 1) -> list[Any]:
    """What it says up to so many ends."""
    messages: list[Any] = []
    while sum(isinstance(message, protocol.Done | protocol.Failed) for message in messages) < until:
        messages.append(worker.receive(60))
    return [message for message in messages if not isinstance(message, protocol.Hello | protocol.Loaded)]


def ask(worker: WorkerProcess, number: int, prompt: list[int], context: int = CONTEXT, **fields: Any) -> None:
    fields.setdefault("sampling", GREEDY)
    worker.send(protocol.Generate(number, prompt, context, **fields))


def answer(worker: WorkerProcess, prompt: list[int], **fields: Any) -> tuple[str, protocol.Done]:
    ask(worker, 1, prompt, **fields)
    messages = told(worker)
    assert isinstance(messages[-1], protocol.Done), messages[-1]
    return "".join(message.text for message in messages if isinstance(message, protocol.Token)), messages[-1]


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    worker = started(write_tiny_model(tmp_path_factory.mktemp("paged") / "tiny", paged=True), PAGED)
    yield worker
    worker.kill()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    """The same weights with a generator for each answer."""
    worker = started(write_tiny_model(tmp_path_factory.mktemp("whole") / "tiny"), None)
    yield worker
    worker.kill()


def test_answers_that_share_runs_are_those_of_a_generator_alone(worker: WorkerProcess, alone: WorkerProcess) -> None:
    expected = [answer(alone, prompt, max_tokens=40) for prompt in PROMPTS]
    for number, prompt in enumerate(PROMPTS):
        ask(worker, number, prompt, max_tokens=40)
    messages = told(worker, until=SLOTS)
    for number, (text, done) in enumerate(expected):
        mine = [message for message in messages if message.request_id == number]
        assert "".join(message.text for message in mine if isinstance(message, protocol.Token)) == text
        assert (mine[-1].finish_reason, mine[-1].completion_tokens) == ("length", 40) == (done.finish_reason, 40)
    order = [message.request_id for message in messages if isinstance(message, protocol.Token)]
    assert len(set(order[-2 * SLOTS :])) == SLOTS, "each run brings one token of each"


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 9, "stop": ["\x0a"]},
        {"max_tokens": 30, "sampling": protocol.Sampling(temperature=0, stop_token_ids=[20, 87])},
        {"max_tokens": 30, "sampling": protocol.Sampling(temperature=0, repetition_penalty=1.5, min_tokens=20)},
        {"context": 30},
        {"max_tokens": 5, "measured": True},
    ],
)
def test_an_answer_ends_as_a_generators_does(
    worker: WorkerProcess, alone: WorkerProcess, fields: dict[str, Any]
) -> None:
    for prompt in PROMPTS[:2]:
        text, done = answer(worker, prompt, **fields)
        expected, other = answer(alone, prompt, **fields)
        told_of = ("finish_reason", "completion_tokens", "prompt_tokens", "stopped_by", "repeats")
        assert text == expected
        assert [getattr(done, name) for name in told_of] == [getattr(other, name) for name in told_of]


def test_the_models_own_end_is_an_end(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "tiny", paged=True)
    path = folder / "genai_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model"]["eos_token_id"] = [52, 257]
    path.write_text(json.dumps(config), encoding="utf-8")
    worker = started(folder, PAGED)
    try:
        ends = [answer(worker, PROMPTS[1], context=context)[1] for context in (100, 100, 19)]
        assert [done.finish_reason for done in ends[:2]] == ["stop", "stop"]
        full = answer(worker, PROMPTS[1], context=len(PROMPTS[1]) + ends[0].completion_tokens)[1]
        assert (full.finish_reason, full.completion_tokens) == ("length", ends[0].completion_tokens)
    finally:
        worker.kill()


def test_a_seed_repeats_an_answer_and_another_seed_gives_another(worker: WorkerProcess) -> None:
    def sampled(seed: int) -> str:
        return answer(worker, PROMPTS[0], max_tokens=30, sampling=protocol.Sampling(temperature=1.5, seed=seed))[0]

    assert sampled(1) == sampled(1)
    assert sampled(1) != sampled(2)


def test_a_cancelled_answer_ends_and_the_others_go_on(worker: WorkerProcess, alone: WorkerProcess) -> None:
    expected, _ = answer(alone, PROMPTS[1], max_tokens=300)
    for number in range(SLOTS):
        ask(worker, number, PROMPTS[number], max_tokens=300)
    worker.send(protocol.Cancel(0))
    messages = told(worker, until=SLOTS)
    reasons = {message.request_id: message.finish_reason for message in messages if isinstance(message, protocol.Done)}
    assert reasons[0] in ("cancelled", "length") and {reasons[n] for n in (1, 2, 3)} == {"length"}
    text = "".join(m.text for m in messages if isinstance(m, protocol.Token) and m.request_id == 1)
    assert text == expected


@pytest.mark.parametrize(
    ("fields", "code", "said"),
    [
        ({"prompt": [65] * CONTEXT}, "prompt_too_long", "the context is"),
        ({"logprobs": 1}, "usage", "tells no log probabilities"),
        ({"guidance": protocol.Guidance("regex", "(")}, "unusable_grammar", "grammar"),
    ],
)
def test_what_cannot_be_answered_is_refused_and_the_next_is_answered(
    worker: WorkerProcess, fields: dict[str, Any], code: str, said: str
) -> None:
    ask(worker, 1, fields.pop("prompt", PROMPTS[0]), max_tokens=3, **fields)
    failed = told(worker)[-1]
    assert (failed.code, failed.request_id) == (code, 1)
    assert said in failed.message and failed.hint
    assert answer(worker, PROMPTS[0], max_tokens=3)[1].completion_tokens == 3


def test_a_grammar_holds(worker: WorkerProcess) -> None:
    text, _ = answer(worker, PROMPTS[0], max_tokens=8, guidance=protocol.Guidance("regex", "[a-f]{4}"))
    assert len(text) == 4 and set(text) <= set("abcdef")


def test_a_provider_without_the_kernels_refuses_by_name(tmp_path: Path) -> None:
    worker = started(write_tiny_model(tmp_path / "tiny", paged=True), None)
    try:
        failed = told(worker)[-1]
        assert failed.code == "model_damaged" and "CPU cannot run" in failed.message
        assert "CUDA" in failed.hint and "--paged" in failed.hint
    finally:
        worker.kill()


class BrokenEngine:
    """Fails in its second run, as one whose card is lost."""

    made = 0

    def __init__(self, model: Any) -> None:
        BrokenEngine.made += 1
        self._engine, self._runs = oga.Engine(model), 0
        self.create_event_buffer, self.create_request = self._engine.create_event_buffer, self._engine.create_request

    def run(self, buffer: Any) -> Any:
        self._runs += 1
        if self._runs == 2:
            raise RuntimeError("CUDA failure 700: an illegal memory access was encountered")
        return self._engine.run(buffer)


def test_a_broken_engine_fails_all_its_answers_and_the_next_has_a_new_one(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "tiny", paged=True)
    broken = type("Oga", (), {**vars(oga), "Engine": BrokenEngine})
    slots = EngineSlots(broken, oga.Model(oga.Config(str(folder))), 257)
    mine = [slots.acquire({"max_length": 64, "do_sample": False}, None, prompt) for prompt in PROMPTS[:2]]
    for slot, prompt in zip(mine, PROMPTS, strict=False):
        slot.begin(prompt)
    for slot in mine:
        assert slot.run_chunk() is slot
        slot.generate_next_token()
    for slot in mine:
        with pytest.raises(RuntimeError, match="CUDA failure 700"):
            slot.run_chunk()
        slots.release(slot, reusable=False)
    again = slots.acquire({"max_length": 64, "do_sample": False}, None, PROMPTS[0])
    again.begin(PROMPTS[0])
    assert again.run_chunk() is again and BrokenEngine.made == 2


def test_a_request_whose_options_are_refused_is_closed(tmp_path: Path) -> None:
    requests: list[Any] = []

    class Engine:
        def __init__(self, model: Any) -> None:
            self._engine = oga.Engine(model)
            self.create_event_buffer = self._engine.create_event_buffer

        def create_request(self, **options: Any) -> Any:
            requests.append(self._engine.create_request(**options))
            return requests[-1]

    folder = write_tiny_model(tmp_path / "tiny", paged=True)
    slots = EngineSlots(type("Oga", (), {**vars(oga), "Engine": Engine}), oga.Model(oga.Config(str(folder))), 257)
    with pytest.raises(AttributeError):
        slots.acquire({"max_length": 64, "unknown": 1}, None, PROMPTS[0])
    (request,) = requests
    with pytest.raises(RuntimeError, match="closed"):
        request.begin_turn(np.array(PROMPTS[0], np.int32), oga.TurnOptions(request))


def test_a_college_gives_the_same_answers_at_once_as_one_after_another(tmp_path: Path) -> None:
    spec = spec_from_folder("tiny", write_tiny_model(tmp_path / "tiny", paged=True))
    settings = CollegeSettings(
        pool=PoolConfig(vram_budget_mb=1000, max_concurrent_slots=SLOTS),
        cost_of=lambda spec: (ModelCost(100, 0, max_slots=SLOTS), CONTEXT),
        prompts=BytePrompts(),
        worker_command=PAGED,
    )

    async def main() -> None:
        college = College(settings, FakeProbe())

        async def asked(text: str) -> str:
            ask = ce.Ask(spec, [protocol.ChatMessage("user", text)], max_tokens=30, sampling=GREEDY)
            return "".join([event.text async for event in college.ask(ask) if isinstance(event, ce.Delta)])

        texts = [f"question {number}" for number in range(2 * SLOTS)]
        alone = [await asked(text) for text in texts]
        assert all(alone) and await asyncio.gather(*map(asked, texts)) == alone
        await college.close()

    asyncio.run(main())
