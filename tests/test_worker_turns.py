"""How a worker takes its turns and sends what it writes, on the real model: fair, and always the same text."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import MODEL, REPOSITORY, ids_of

from coe_cli.core.memory.prefill import CHUNK_TOKENS
from coe_cli.providers.settings import default_session_options
from coe_cli.runtime.model_folder.on_disk import spec_from_folder
from coe_cli.runtime.worker import protocol
from coe_cli.runtime.worker.single_worker import load_message
from coe_cli.runtime.worker.worker_process import WorkerProcess

PROMPT = "Tell a long story about a lighthouse keeper, his daughter, a storm and a ship."


def answer(worker: WorkerProcess, number: int, **fields: object) -> tuple[list[protocol.Token], protocol.Done]:
    worker.send(
        protocol.Generate(
            request_id=number,
            prompt_ids=ids_of(PROMPT),
            context_length=512,
            sampling=protocol.Sampling(temperature=0),
            **fields,  # type: ignore[arg-type]
        )
    )
    pieces: list[protocol.Token] = []
    while not isinstance(message := worker.receive(60), protocol.Done):
        if isinstance(message, protocol.Token):
            pieces.append(message)
    return pieces, message


@pytest.mark.long
def test_gathered_tokens_are_the_same_text_in_fewer_messages(models_dir: Path) -> None:
    worker = WorkerProcess()
    try:
        worker.send(load_message(spec_from_folder(MODEL, models_dir / MODEL)))
        while not isinstance(worker.receive(60), protocol.Loaded):
            pass
        single, done = answer(worker, 1, max_tokens=40)
        assert len(single) == 40 == done.completion_tokens, "each token at once"
        assert {piece.tokens for piece in single} == {1}
        gathered, done = answer(worker, 2, max_tokens=40, flush_s=3600.0)
        assert [piece.tokens for piece in gathered] == [1, 39], "the first at once, the rest with the last"
        assert "".join(piece.text for piece in gathered) == "".join(piece.text for piece in single)
        assert done.completion_tokens == 40
        word = single[20].text.strip()
        stopped, done = answer(worker, 3, max_tokens=40, flush_s=3600.0, stop=[word])
        before, _ = answer(worker, 4, max_tokens=40, stop=[word])
        assert "".join(piece.text for piece in stopped) == "".join(piece.text for piece in before)
        assert word not in "".join(piece.text for piece in stopped) and done.finish_reason == "stop"
    finally:
        worker.kill()


# --- several answers at once


def generate(worker: WorkerProcess, number: int, prompt: str, max_tokens: int) -> None:
    worker.send(
        protocol.Generate(
            request_id=number,
            prompt_ids=ids_of(prompt),
            context_length=4096,
            max_tokens=max_tokens,
            sampling=protocol.Sampling(temperature=0),
        )
    )


@contextlib.contextmanager
def at_once(worker: WorkerProcess) -> Iterator[None]:
    """What is sent inside is there before the worker takes any of it in, however slow this process is."""
    process = psutil.Process(worker.pid)
    process.suspend()
    yield
    process.resume()


def follow(worker: WorkerProcess, answers: int) -> list[protocol.FromWorker]:
    """Messages until so many answers are done."""
    messages: list[protocol.FromWorker] = []
    while sum(isinstance(message, protocol.Done) for message in messages) < answers:
        messages.append(worker.receive(60))
    return messages


def text_of(messages: list[protocol.FromWorker], number: int) -> str:
    return "".join(m.text for m in messages if isinstance(m, protocol.Token) and m.request_id == number)


@pytest.mark.long
def test_answers_take_turns_and_a_long_prompt_holds_nobody_up(models_dir: Path) -> None:
    long = "The keeper wrote down the weather of the day. " * 110
    worker = WorkerProcess()
    try:
        worker.send(load_message(spec_from_folder(MODEL, models_dir / MODEL), slots=2))
        while not isinstance(worker.receive(60), protocol.Loaded):
            pass
        generate(worker, 1, PROMPT, 60)
        alone = follow(worker, 1)
        generate(worker, 2, long, 4)
        long_alone = follow(worker, 1)
        with at_once(worker):
            generate(worker, 3, "Name a colour, then tell where it is seen, at length.", 20)
            generate(worker, 4, PROMPT, 20)
        order = [m.request_id for m in follow(worker, 2) if isinstance(m, protocol.Token)]
        both = [number for number, other in itertools.pairwise(order) if {number, other} == {3, 4}]
        assert len(both) > 25, "one token each in turn"

        with at_once(worker):
            generate(worker, 5, PROMPT, 60)
            generate(worker, 6, "Now: " + long, 4)
        messages = follow(worker, 2)
        at = {type(m): index for index, m in reversed(list(enumerate(messages))) if getattr(m, "request_id", 0) == 6}
        between = messages[at[protocol.Started] : at[protocol.Token]]
        assert sum(isinstance(m, protocol.Token) for m in between) >= 2, "the other answer went on between its pieces"
        assert text_of(messages, 5) == text_of(alone, 1)
        started = next(m for m in long_alone if isinstance(m, protocol.Started))
        assert started.prompt_tokens > 2 * CHUNK_TOKENS

        with at_once(worker):
            generate(worker, 7, "Again: " + long, 4)
            worker.send(protocol.Cancel(7))
            generate(worker, 8, long, 4)
        last = follow(worker, 2)
        done = next(m for m in last if isinstance(m, protocol.Done) and m.request_id == 7)
        assert (done.finish_reason, done.completion_tokens) == ("cancelled", 0), "it ends between two pieces"
        assert text_of(last, 8) == text_of(long_alone, 2)
    finally:
        worker.kill()


@pytest.mark.long
def test_a_prompt_in_pieces_gives_the_tokens_of_a_prompt_in_one(models_dir: Path) -> None:
    """With the runtime itself as the yardstick: one ``append_tokens`` with the whole prompt."""
    script = """
import json, os, sys
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import numpy as np, onnxruntime_genai as oga
config = oga.Config(sys.argv[1])
config.overlay(json.dumps({"model": {"decoder": {"session_options": json.loads(sys.argv[2])}}}))
model = oga.Model(config)
tokenizer = oga.Tokenizer(model)
from coe_cli.runtime.worker import slots
ids = [int(token) for token in tokenizer.encode("The keeper wrote down the weather of the day. " * 10)]
def generator():
    params = oga.GeneratorParams(model)
    params.set_search_options(max_length=256, do_sample=False)
    return oga.Generator(model, params)
def answer(it):
    tokens = []
    for _ in range(24):
        it.generate_next_token()
        tokens.append(int(it.get_next_tokens()[0]))
    return tokens
for length in (64, 65, 66, 67, len(ids)):
    whole = generator()
    whole.append_tokens(np.array(ids[:length], dtype=np.int32))
    slot = slots.Slot(generator(), "", 32)
    slot.begin(ids[:length])
    pieces = 1
    while (ready := slot.run_chunk()) is None:
        pieces += 1
    print(json.dumps([pieces, answer(whole) == answer(ready)]))
"""
    options = json.dumps(default_session_options("cpu"))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", script, str(models_dir / MODEL), options]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [same for _, same in results] == [True] * 5
    assert [pieces for pieces, _ in results] == [2, 3, 3, 3, 4]
