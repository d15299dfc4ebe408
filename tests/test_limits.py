"""Numbers that do not fit: refused where they are parsed, at every door, and never at the cost of a slot or of the truth."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer
from college_trial import run, trial
from conftest import MODEL, Coe, one_line
from serving import Served

from coe_cli.app import build_app
from coe_cli.core.batch.batch_rows import InvalidRow, parse_line
from coe_cli.errors import UsageError, explained
from coe_cli.runtime.college.worker_handle import WorkerHandle
from coe_cli.runtime.prompts.prompt_messages import Prepare
from coe_cli.runtime.worker import protocol

HUGE = 99999999999999999999


def _numbers() -> list[Any]:
    found = []

    def walk(command: Any, path: str) -> None:
        for parameter in command.params:
            if "Int" in type(parameter.type).__name__ or "Float" in type(parameter.type).__name__:
                found.append(pytest.param(parameter.type, id=f"{path} {parameter.name}"))
        for name, inner in getattr(command, "commands", {}).items():
            walk(inner, f"{path} {name}")

    walk(typer.main.get_command(build_app()), "coe")
    assert len(found) > 30
    return found


@pytest.mark.parametrize("kind", _numbers())
def test_every_number_of_the_command_line_has_both_ends(kind: Any) -> None:
    least, most = getattr(kind, "min", None), getattr(kind, "max", None)
    assert least is not None and most is not None
    assert -(2**63) <= least < most < 2**63


@pytest.mark.parametrize(
    "command",
    [
        ("ask", "-m", MODEL, "--max-tokens", HUGE, "x"),
        ("ask", "-m", MODEL, "--temperature", "1", "--top-k", HUGE, "x"),
        ("ask", "-m", MODEL, "--seed", HUGE, "--no-serve", "x"),
        ("chat", "-m", MODEL, "--max-tokens", HUGE),
        ("batch", "-m", MODEL, "--max-tokens", HUGE, "-"),
        ("ask", "-m", MODEL, "--temperature", "nan", "x"),
        ("ask", "-m", MODEL, "--timeout", "nan", "x"),
        ("chat", "-m", MODEL, "--top-p", "nan"),
        ("batch", "-m", MODEL, "--temperature", "nan", "-"),
        ("bench", MODEL, "--fail-below", "nan"),
        ("logs", "show", HUGE),
        ("logs", "rm", HUGE),
    ],
    ids=lambda command: " ".join(map(str, command[:4])),
)
def test_the_command_line_refuses_it_as_wrong_usage(coe: Coe, command: tuple[Any, ...]) -> None:
    result = coe.run(*map(str, command), stdin='{"prompt": "Hi"}\n')
    assert result.code == 2, result.stderr
    assert "not in the range" in one_line(result.stderr) or "not a number" in one_line(result.stderr)


@pytest.mark.parametrize("key", ["max_tokens", "top_k", "seed", "temperature", "top_p"])
@pytest.mark.parametrize("value", [HUGE, -HUGE, 2**31])
def test_a_row_of_a_batch_refuses_it(key: str, value: int) -> None:
    with pytest.raises(InvalidRow, match=key):
        parse_line(json.dumps({"prompt": "Hi", key: value}).encode(), 1)


@pytest.mark.parametrize("key", ["max_tokens", "max_completion_tokens", "top_k", "seed", "temperature", "top_p"])
def test_v1_refuses_it_and_names_it(served: Served, key: str) -> None:
    asked: dict[str, Any] = {key: HUGE}
    response = served.chat(**asked)
    assert (response.status, response.error["param"]) == (400, key)


def test_coes_own_endpoint_refuses_it_too(served: Served) -> None:
    token: dict[str, Any] = {"authorization": f"Bearer {served.state['token']}"}
    for wrong in (
        {"sampling": {"top_k": 2**40}},
        {"sampling": {"temperature": -1.0}},
        {"max_tokens": HUGE},
        {"priority": 2**60},
        {"stop": ["x"] * 17},
    ):
        asked = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], **wrong}
        response = served.request("POST", "/coe/ask", asked, **token)
        assert response.status == 400, wrong
    assert served.chat(max_tokens=1).status == 200


@pytest.mark.parametrize("sent", [(), ("--no-serve",)])
def test_a_question_larger_than_a_request_may_be_is_wrong_usage(answered: Coe, sent: tuple[str, ...]) -> None:
    result = answered.run("ask", "-m", MODEL, *sent, "-", stdin=b"word " * (2 * 2**20))
    assert result.code == 2, result.stderr
    assert result.stderr.splitlines()[-1].endswith("Shorten it.")


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [(MemoryError(), 6, "this computer has no memory left"), (KeyError(), 1, "KeyError")],
)
def test_an_error_without_words_is_told_by_what_it_is(error: Exception, code: int, says: str) -> None:
    told = explained(error)
    assert (told.exit_code, told.message) == (code, says)
    assert told.hint


# --- whatever fails in sending


@pytest.mark.parametrize("failure", [OverflowError("int too big"), RuntimeError("odd"), UsageError("too long")])
def test_a_request_that_cannot_be_sent_frees_its_slot_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    send = WorkerHandle.send

    def failing(worker: WorkerHandle, message: protocol.Message) -> None:
        if isinstance(message, protocol.Generate) and bytes(message.prompt_ids) == b"unsendable":
            raise failure
        send(worker, message)

    monkeypatch.setattr(WorkerHandle, "send", failing)

    async def test() -> None:
        async with trial(tmp_path) as college:
            for whole in (False, True):  # the first one has to wait for the load, the others have not
                refused = await asyncio.gather(*(college.ask(prompt="unsendable", buffered=whole) for _ in range(6)))
                for answer in refused:
                    assert answer.error is not None and str(failure) in answer.error.message
            assert college.college.snapshot().running == 0
            answers = await asyncio.gather(*(college.ask() for _ in range(4)))
            assert all(answer.right for answer in answers), "all the slots are free"
            assert college.starts("one") == 1, "the worker was not to blame"
            await college.settled()

    run(test)


def test_a_load_that_cannot_be_sent_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    send = WorkerHandle.send

    def failing(worker: WorkerHandle, message: protocol.Message) -> None:
        if isinstance(message, protocol.Load):
            raise ValueError("cannot be sent")
        send(worker, message)

    async def test() -> None:
        async with trial(tmp_path) as college:
            with monkeypatch.context() as patch:
                patch.setattr(WorkerHandle, "send", failing)
                answer = await asyncio.wait_for(college.ask(), 60)
                assert answer.error is not None and "cannot be sent" in answer.error.message
            assert (await college.ask()).right
            await college.settled()

    run(test)


@pytest.mark.parametrize("text", ["\ud800", "x" * (65 * 2**20)], ids=["a lone surrogate", "65 MB"])
def test_what_cannot_be_framed_is_the_askers_fault(text: str) -> None:
    message = Prepare("m", "folder", [protocol.ChatMessage("user", text)], 10)
    with pytest.raises(UsageError, match=r"cannot be given|larger than the 64 MB that a model takes"):
        protocol.frame(message)


def test_a_value_out_of_range_on_the_wire_costs_the_request_and_not_the_worker() -> None:
    wrong = protocol.Generate(7, [], 10, sampling=protocol.Sampling(top_k=2**40))
    message = protocol.read_to_worker(io.BytesIO(protocol.frame(wrong)))
    assert isinstance(message, protocol.Failed) and (message.request_id, message.code) == (7, "usage")
    with pytest.raises(msgspec.ValidationError):
        protocol.read_to_worker(io.BytesIO(b"\x00\x00\x00\x01\xc0"))
