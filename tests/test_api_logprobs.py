"""Log probabilities of an answer's tokens: OpenAI's two shapes, whole and streamed, and where there is no place for them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from conftest import MODEL, Coe, copy_model
from model_store.tiny_model import write_tiny_model
from serving import Served, serving

from coe_cli.core.answers.token_bytes import TokenBytes, token_text
from coe_cli.runtime.worker.generation import Logprobs

HI: list[Any] = [{"role": "user", "content": "The capital of France is"}]


@pytest.fixture(scope="module")
def served(home: Coe, models_dir: Path) -> Iterator[Served]:
    copy_model(models_dir / MODEL, home.models / MODEL)
    write_tiny_model(home.models / "tiny", seed=3)
    with serving(home) as running:
        yield running


@pytest.mark.long
def test_a_chat_tells_them_whole_and_streamed(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": MODEL, "messages": HI, "temperature": 0, "max_tokens": 12}
    plain = client.chat.completions.create(**ask).choices[0]
    (choice,) = client.chat.completions.create(logprobs=True, top_logprobs=3, **ask).choices
    assert plain.logprobs is None and choice.message.content == plain.message.content
    assert choice.logprobs is not None and choice.logprobs.content
    tokens = choice.logprobs.content
    assert b"".join(bytes(each.bytes or []) for each in tokens).decode() == choice.message.content
    for each in tokens:
        assert each.logprob <= 0 and len(each.top_logprobs) == 3
        found = [other.logprob for other in each.top_logprobs]
        assert found == sorted(found, reverse=True) and sum(map(math.exp, found)) <= 1.0001
        assert (each.top_logprobs[0].token, found[0]) == (each.token, each.logprob)  # greedy
    chunks = client.chat.completions.create(logprobs=True, top_logprobs=3, stream=True, **ask)
    streamed = [each for chunk in chunks if chunk.choices[0].logprobs for each in chunk.choices[0].logprobs.content]
    assert [each.bytes for each in streamed] == [each.bytes for each in tokens]
    assert [each.logprob for each in streamed] == pytest.approx([each.logprob for each in tokens], abs=0.01)
    bare = client.chat.completions.create(logprobs=True, **ask).choices[0].logprobs
    assert bare is not None and bare.content and [each.top_logprobs for each in bare.content] == [[]] * len(tokens)


def test_a_completion_tells_them_whole_and_streamed(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": MODEL, "prompt": "The capital of France is", "temperature": 0, "max_tokens": 6}
    (choice,) = client.completions.create(logprobs=2, **ask).choices
    told = choice.logprobs
    assert told is not None and told.tokens and told.text_offset and told.top_logprobs
    assert "".join(told.tokens) == choice.text
    assert [choice.text[at:].startswith(token) for at, token in zip(told.text_offset, told.tokens, strict=True)]
    assert [len(each) for each in told.top_logprobs] == [2] * len(told.tokens)
    chunks = list(client.completions.create(logprobs=2, stream=True, **ask))
    parts = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
    assert [token for part in parts for token in part.tokens] == told.tokens
    assert [at for part in parts for at in part.text_offset] == told.text_offset
    chosen = client.completions.create(logprobs=0, **ask).choices[0].logprobs
    assert chosen is not None and chosen.token_logprobs == pytest.approx(told.token_logprobs, abs=0.01)


def test_they_end_where_a_stop_string_ends_the_text(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": MODEL, "prompt": "The capital of France is", "temperature": 0, "max_tokens": 12}
    whole = client.completions.create(logprobs=0, **ask).choices[0]
    assert whole.logprobs is not None and whole.logprobs.tokens
    stop = whole.logprobs.tokens[1]
    cut = client.completions.create(logprobs=0, stop=stop, **ask).choices[0]
    assert cut.logprobs is not None and cut.logprobs.tokens is not None
    assert cut.text == "".join(cut.logprobs.tokens) == whole.text[: whole.text.index(stop)]


def test_several_answers_and_a_function_have_their_own(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {"model": "tiny", "messages": HI, "temperature": 1.5, "seed": 1, "max_tokens": 6}
    for choice in client.chat.completions.create(n=2, logprobs=True, top_logprobs=1, **ask).choices:
        assert choice.logprobs is not None and choice.logprobs.content
        assert b"".join(bytes(each.bytes or []) for each in choice.logprobs.content).decode(errors="replace")
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"b": {"type": "boolean"}}, "required": ["b"]}}}  # fmt: skip
    called = {**ask, "max_tokens": 100, "tools": [tool], "tool_choice": "required", "logprobs": True}
    choice = client.chat.completions.create(**called).choices[0]
    assert choice.message.tool_calls and choice.logprobs is not None and choice.logprobs.content
    assert '"name": "f"' in "".join(each.token for each in choice.logprobs.content)
    chunks = list(client.chat.completions.create(**called, stream=True))
    assert any(chunk.choices[0].logprobs for chunk in chunks)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/completions", {"prompt": "x", "echo": True, "logprobs": 1}),
        ("/v1/responses", {"input": "x", "logprobs": True}),
        ("/v1/messages", {"messages": HI, "max_tokens": 1, "logprobs": True}),
        ("/api/chat", {"messages": HI, "logprobs": True}),
        ("/v1/completions", {"prompt": "x", "prompt_logprobs": 1}),
        ("/v1/completions", {"prompt": "x", "logprobs": 21}),
    ],
)
def test_where_there_is_no_place_for_them_they_are_refused(served: Served, path: str, fields: dict[str, Any]) -> None:
    answer = served.request("POST", path, {"model": "tiny", **fields})
    assert answer.status == 400 and b"logprobs" in answer.body, answer.body


def test_the_bytes_of_tokens_of_every_kind() -> None:
    gpt = TokenBytes(
        b'{"model": {"vocab": {"\xc4\xa0a": 0, "\xc3\xa3": 1}}, "decoder": {"type": "ByteLevel"}, "added_tokens": [{"id": 2, "content": "<s>"}]}'
    )
    assert [gpt.of(each) for each in range(4)] == [b" a", b"\xe3", b"<s>", b""]
    piece = TokenBytes('{"model": {"vocab": [["▁a", -1.0], ["<0xE3>", 0]]}, "decoder": {"type": "Sequence"}}'.encode())
    assert [piece.of(each) for each in range(3)] == [b" a", b"\xe3", b""]
    assert (token_text(b" a"), token_text(b"\xe3")) == (" a", "bytes:\\xe3")


def test_a_token_is_told_when_the_text_that_it_begins_is_shown() -> None:
    tokens = TokenBytes(b'{"model": {"vocab": {"a": 0, "b": 1}}, "decoder": {"type": "ByteLevel"}}')
    found = Logprobs(tokens, 1)
    for number, text in ((0, ""), (1, "a")):
        found.look(np.array([[[1.0, 1.0, -np.inf]]], np.float32))
        found.add(number)
        found.show(text, last=False)
    (first,) = found.take()
    assert first.token == b"a" and first.logprob == pytest.approx(-math.log(2))
    found.show("", last=True)
    assert [each.token for each in found.take()] == [b"b"] and found.take() == []
