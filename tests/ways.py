"""One question to a model through every way in, and what came back, in one shape."""

from __future__ import annotations

import json
import os
import re
from typing import Any, NamedTuple

import pytest
from conftest import Coe
from serving import Served

from coe_cli import Client
from coe_cli.errors import UsageError

_OURS = re.compile("COE_")

APIS = ("/v1/responses", "/v1/messages", "/api/chat", "/api/generate", "/completion")
"""Those beside chat completions. `/completion` goes past the chat template."""
WAYS = (
    *("ask", "ask, served", "ask -c", "chat", "batch", "/v1", "/v1, streamed", "Client"),
    *(api + kind for api in APIS for kind in ("", ", streamed")),
)
"""`ask` answers in its own process, `Client` is given the answer by the college."""


class Said(NamedTuple):
    """``notes`` is all that was said beside the answer; ``finish_reason`` and ``model`` are '' where they are not told."""

    text: str
    thoughts: str
    finish_reason: str
    notes: str
    model: str


def say(way: str, served: Served, question: str = "Hi", *, options: tuple[str, ...] = (), **fields: Any) -> Said:
    """The answer to ``question`` from ``model=`` or ``expert=``; other fields as in a row of a batch."""
    coe, given = served.coe, dict(fields)
    named = given.pop("model", None) or given.pop("expert")
    by_model = "model" in fields
    if way.startswith(("ask", "chat")):
        flags = ["-m" if by_model else "-e", named, *options]
        for key, value in given.items():
            flags += ["--" + key.replace("_", "-"), str(value)]
        if way == "chat":
            result = coe.run("chat", "--no-log", "--show-thinking", *flags, stdin=f"{question}\n").check()
            return Said(result.stdout.strip("\n"), "", "", result.stderr, "")
        serve: dict[str, Any] = {} if way == "ask" else {"COE_NO_SERVE": "0"}
        log = ["-c"] if way == "ask -c" else ["--no-log"]
        if way == "ask -c":
            coe.run("ask", *flags, "--max-tokens", "2", "First", **serve).check()
        result = coe.run("ask", *log, "--format", "json", *flags, question, **serve).check()
        answer = json.loads(result.stdout)
        notes = " ".join(answer["warnings"]) + result.stderr
        return Said(answer["answer"], answer["thinking"], answer["finish_reason"], notes, answer["model"])
    if way == "batch":
        row = {"prompt": question, ("model" if by_model else "expert"): named, **given}
        (coe.folder / "in.jsonl").write_text(json.dumps(row) + "\n")
        result = coe.run("batch", "in.jsonl", "-o", "out.jsonl", "--restart", *options).check()
        row = json.loads((coe.folder / "out.jsonl").read_text())
        notes = " ".join(row.get("warnings", [])) + result.stderr
        return Said(row["answer"], row.get("thinking", ""), row["finish_reason"], notes, row["model"])
    if way == "Client":
        with pytest.MonkeyPatch.context() as patch:
            for name in {"COE_NO_SERVE", *filter(_OURS.match, os.environ)}:
                patch.delenv(name, raising=False)
            for name, value in coe.environment.items():
                if _OURS.match(name) and name != "COE_NO_SERVE":
                    patch.setenv(name, value)
            with Client() as client:
                answer = client.ask(question, **({"model": named} if by_model else {"expert": named}), **given)
        return Said(answer.answer, answer.thinking, answer.finish_reason, " ".join(answer.warnings), answer.model)
    path, _, streamed = way.partition(", ")
    if path in APIS:
        return _of_api(path, bool(streamed), served, {"model": named, **_asked(path, question, given)})
    body = {"model": named, "messages": [{"role": "user", "content": question}], **given}
    if way == "/v1":
        response = served.request("POST", "/v1/chat/completions", body)
        assert response.status == 200, response.body
        (choice,) = response.json["choices"]
        message, notes = choice["message"], " ".join(response.json["coe"]["notes"])
        thoughts = message.get("reasoning_content", "")
        return Said(message["content"], thoughts, choice["finish_reason"], notes, response.json["model"])
    chunks = served.request("POST", "/v1/chat/completions", body | {"stream": True}).chunks
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    notes = " ".join(note for chunk in chunks for note in chunk.get("coe", {}).get("notes", []))
    text, thoughts = ("".join(d.get(key) or "" for d in deltas) for key in ("content", "reasoning_content"))
    return Said(text, thoughts, chunks[-1]["choices"][0]["finish_reason"], notes, chunks[0]["model"])


def _asked(path: str, question: str, given: dict[str, Any]) -> dict[str, Any]:
    """The fields of a request at ``path``, which are called otherwise than in a chat completion."""
    turns = [{"role": "user", "content": question}]
    if path.startswith("/api/"):
        options = {"num_predict" if name == "max_tokens" else name: value for name, value in given.items()}
        return {**({"messages": turns} if path == "/api/chat" else {"prompt": question}), "options": options}
    limit = {"/v1/responses": "max_output_tokens", "/completion": "n_predict"}.get(path, "max_tokens")
    if path == "/v1/messages":
        given = {"max_tokens": 4096, **given}
    fields = {limit if name == "max_tokens" else name: value for name, value in given.items()}
    asked: dict[str, Any] = {"/v1/responses": {"input": question}, "/completion": {"prompt": question + " "}}
    return {**asked.get(path, {"messages": turns}), **fields}


def _of_api(path: str, streamed: bool, served: Served, body: dict[str, Any]) -> Said:
    response = served.request("POST", path, body | {"stream": streamed})
    assert response.status == 200, response.body
    lines = [line.removeprefix("data: ") for line in response.body.decode().splitlines()]
    events = [json.loads(line) for line in lines if line.startswith("{")]
    text, thoughts, ended, last = _READERS[path](events, streamed)
    reason = "length" if ended in ("length", "max_tokens", "incomplete", "limit") else "stop"
    return Said(text, thoughts, reason, " ".join(last["coe"]["notes"]), last["coe"]["model"])


_Read = tuple[str, str, str, dict[str, Any]]
"""The text, the thoughts, why it ended, and what has coe's own addition."""


def _joined(parts: list[dict[str, Any]], key: str) -> str:
    return "".join(part.get(key) or "" for part in parts)


def _responses(events: list[dict[str, Any]], streamed: bool) -> _Read:
    last = events[-1]["response"] if streamed else events[0]
    kinds = {item["type"]: _joined(item["content"], "text") for item in last["output"]}
    text, thoughts = kinds.get("message", ""), kinds.get("reasoning", "")
    if streamed:
        assert text == _joined([e for e in events if e["type"] == "response.output_text.delta"], "delta")
    return text, thoughts, last["status"], last


def _messages(events: list[dict[str, Any]], streamed: bool) -> _Read:
    parts = [e["delta"] for e in events if e["type"] == "content_block_delta"] if streamed else events[0]["content"]
    last = events[-2] if streamed else events[0]
    return _joined(parts, "text"), _joined(parts, "thinking"), last.get("delta", last)["stop_reason"], last


def _ollama(events: list[dict[str, Any]], streamed: bool) -> _Read:
    said, last = [event.get("message", event) for event in events], events[-1]
    return _joined(said, "content") + _joined(said, "response"), _joined(said, "thinking"), last["done_reason"], last


def _llama(events: list[dict[str, Any]], streamed: bool) -> _Read:
    return _joined(events, "content"), "", events[-1]["stop_type"], events[-1]


_READERS = {
    "/v1/responses": _responses,
    "/v1/messages": _messages,
    "/api/chat": _ollama,
    "/api/generate": _ollama,
    "/completion": _llama,
}


def refusal(way: str, coe: Coe, served: Served | None, model: str, options: dict[str, Any]) -> str:
    """The words with which a request with ``options`` is refused through ``way``."""
    if way in ("ask", "chat"):
        flags = [part for key, value in options.items() for part in ("--" + key.replace("_", "-"), str(value))]
        result = coe.run(way, "-m", model, "--no-log", *flags, *(["Hi"] if way == "ask" else []), stdin="Hi\n")
        assert result.code == 2, result
        return result.stderr
    if way == "batch":
        (coe.folder / "in.jsonl").write_text(json.dumps({"prompt": "Hi", "model": model, **options}) + "\n")
        result = coe.run("batch", "in.jsonl", "-o", "out.jsonl", "--restart")
        assert result.code != 0, result
        return (coe.folder / "out.jsonl").read_text()
    if way == "Client":
        with pytest.raises(UsageError) as refused, Client(serve=False) as client:
            client.ask("Hi", model=model, **options)
        return str(refused.value)
    assert served is not None
    if way in APIS:
        response = served.request("POST", way, {"model": model, **_asked(way, "Hi", options)})
        assert response.status == 400, response.body
        return response.body.decode()
    path = "completions" if way == "/v1/completions" else "chat/completions"
    content = {"prompt": "Hi"} if way == "/v1/completions" else {"messages": [{"role": "user", "content": "Hi"}]}
    response = served.request("POST", f"/v1/{path}", {"model": model, **content, **options})
    assert response.status == 400, response.body
    return f"{response.error['param']}: {response.error['message']}"
