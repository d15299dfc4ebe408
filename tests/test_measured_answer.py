"""What a benchmark asks of the real worker: token ids as the prompt, a fixed number of tokens, the instant of each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from conftest import MODEL, ids_of

from coe_cli.runtime.model_folder.on_disk import spec_from_folder
from coe_cli.runtime.worker import protocol
from coe_cli.runtime.worker.single_worker import load_message
from coe_cli.runtime.worker.worker_process import WorkerProcess

M = TypeVar("M", bound=protocol.Message)
DEPTH = [500 + 7 * number for number in range(40)]


@pytest.fixture(scope="module")
def worker(models_dir: Path) -> Iterator[WorkerProcess]:
    process = WorkerProcess()
    process.send(load_message(spec_from_folder(MODEL, models_dir / MODEL)))
    _next(process, protocol.Loaded)
    yield process
    process.kill()


def _next(worker: WorkerProcess, kind: type[M]) -> M:
    while not isinstance(message := worker.receive(120), kind):
        assert not isinstance(message, protocol.Failed), message
    return message


def _answer(worker: WorkerProcess, prompt_ids: list[int], *, measured: bool) -> tuple[protocol.Started, protocol.Done]:
    greedy = protocol.Sampling(temperature=0)
    worker.send(protocol.Generate(1, prompt_ids, 256, 64, sampling=greedy, measured=measured))
    return _next(worker, protocol.Started), _next(worker, protocol.Done)


@pytest.mark.long
def test_token_ids_are_the_prompt_and_every_token_of_a_measured_answer_has_its_instant(worker: WorkerProcess) -> None:
    started, done = _answer(worker, DEPTH, measured=True)
    assert started.prompt_tokens == done.prompt_tokens == len(DEPTH)
    assert len(done.token_at_s) == 64 and done.token_at_s == sorted(done.token_at_s)
    assert done.token_at_s[-1] - done.token_at_s[0] == pytest.approx(done.decode_s, abs=0.05)
    assert _answer(worker, DEPTH, measured=False)[1].token_at_s == []


@pytest.mark.long
def test_a_measured_answer_goes_on_where_the_model_would_end(worker: WorkerProcess) -> None:
    asked = ids_of("What is the capital of France?", "You are a helpful assistant. Answer in one word.")
    plain = _answer(worker, asked, measured=False)[1]
    assert plain.finish_reason == "stop" and plain.completion_tokens < 64
    done = _answer(worker, asked, measured=True)[1]
    assert (done.completion_tokens, done.finish_reason) == (64, "length")


@pytest.mark.long
def test_a_new_prompt_behind_the_same_beginning_runs_only_what_is_new(worker: WorkerProcess) -> None:
    _answer(worker, [*DEPTH, 900, 901, 902], measured=True)
    started, _ = _answer(worker, [*DEPTH, 903, 904, 905], measured=True)
    assert started.reused_tokens == len(DEPTH)
