"""One question to a model through every way in, and what came back, in one shape."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from conftest import Coe
from serving import Served

WAYS = ("ask", "ask, served", "ask -c", "chat", "batch", "/v1", "/v1, streamed")
"""`ask` answers in its own process."""


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
        serve = {} if way == "ask" else {"COE_NO_SERVE": "0"}
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
    assert served is not None
    path = "completions" if way == "/v1/completions" else "chat/completions"
    content = {"prompt": "Hi"} if way == "/v1/completions" else {"messages": [{"role": "user", "content": "Hi"}]}
    response = served.request("POST", f"/v1/{path}", {"model": model, **content, **options})
    assert response.status == 400, response.body
    return f"{response.error['param']}: {response.error['message']}"
