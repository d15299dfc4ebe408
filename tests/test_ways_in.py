"""The same texts through every way in: the prompt's length tells what the model was given. One token is one byte here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Coe
from model_store.tiny_model import catalog_entry, write_tiny_model
from serving import Served, serving
from test_prompts import HOSTILE, MISTRAL, with_template

from coe_cli import Client
from coe_cli.errors import UsageError

Conversation = list[tuple[str, str]]
PLAIN = "S:{system}\nQ:{question}\nA:"
WAYS = ["ask", "ask, served", "batch", "/v1", "chat"]
ONE_QUESTION = ("ask", "ask, served", "chat")


@pytest.fixture(scope="module")
def home(home: Coe) -> Coe:
    """Experts ``plain`` and ``alternating`` on models of a few kilobytes, and one whose template never ends."""
    write_tiny_model(home.models / "plain-model", seed=3)
    with_template(write_tiny_model(home.models / "alternating-model", seed=3), MISTRAL)
    with_template(write_tiny_model(home.models / "hostile-model", seed=3), HOSTILE["gigabyte"])
    expert = {"description": "x", "system_prompt": ""}
    catalog = {
        "default_model": "alternating-model",
        "models": {f"{name}-model": catalog_entry("file:/nowhere") for name in ("plain", "alternating", "hostile")},
        "experts": {
            "general_reasoner": {**expert, "model": "alternating-model"},
            "alternating": {**expert, "model": "alternating-model"},
            "hostile": {**expert, "model": "hostile-model"},
            "plain": {**expert, "model": "plain-model", "prompt_format": "plain", "template": PLAIN},
        },
    }
    (home.config / "experts.yaml").write_text(yaml.safe_dump(catalog))
    return home


@pytest.fixture(scope="module")
def served(home: Coe) -> Iterator[Served]:
    with serving(home) as it:
        yield it


def prompt_tokens(way: str, served: Served, expert: str, conversation: Conversation) -> int:
    """The length of the prompt when the conversation comes in that way."""
    home, (_, question) = served.coe, conversation[-1]
    system = [] if conversation[0][0] == "user" else ["-s", conversation[0][1]]
    if way.startswith("ask"):
        serve: dict[str, Any] = {} if way == "ask" else {"COE_NO_SERVE": "0"}
        arguments = ["ask", "-e", expert, "--no-log", "--max-tokens", "1", "--format", "json", *system, question]
        return int(json.loads(home.run(*arguments, **serve).check().stdout)["usage"]["prompt_tokens"])
    if way == "chat":
        said = home.run("chat", "-e", expert, "--no-log", "--max-tokens", "1", *system, stdin=f"{question}\n/stats\n")
        return int(said.check().stderr.split("prompts ")[1].split()[0])
    messages = [{"role": role, "content": text} for role, text in conversation]
    if way == "batch":
        row = {"messages": messages, "expert": expert, "max_tokens": 1}
        (home.folder / "in.jsonl").write_text(json.dumps(row) + "\n")
        home.run("batch", "in.jsonl", "-o", "out.jsonl", "--restart").check()
        return int(json.loads((home.folder / "out.jsonl").read_text())["usage"]["prompt_tokens"])
    answer = served.request("POST", "/v1/chat/completions", {"model": expert, "messages": messages, "max_tokens": 1})
    assert answer.status == 200, answer.body
    return int(answer.json["usage"]["prompt_tokens"])


def one_turn(system: str, question: str) -> str:
    return PLAIN.replace("{system}", "\1").replace("{question}", question).replace("\1", system)


CASES: dict[str, tuple[str, Conversation, int]] = {
    "one pass": (
        "plain", [("system", "Answer. {question}"), ("user", "AAAA")], len(one_turn("Answer. {question}", "AAAA")),
    ),
    "control tokens are text": ("plain", [("user", "a</s><s>b")], len(one_turn("", "a</s><s>b"))),
    "history": (
        "plain",
        [("user", "a"), ("assistant", "b"), ("user", "c")],
        len(one_turn("", "a") + "b\n\n" + one_turn("", "c")),
    ),
    "no system role": ("alternating", [("system", "Be brief."), ("user", "Hi")], 1 + len("[INST] Be brief.\n\nHi [/INST]")),
    "neighbours of one role": ("alternating", [("user", "a"), ("user", "b")], 1 + len("[INST] a\n\nb [/INST]")),
    "system alone": ("alternating", [("system", "Be brief.")], 1 + len("[INST] Be brief. [/INST]")),
}  # fmt: skip


@pytest.mark.parametrize(
    ("way", "case"),
    [
        (way, case)
        for case, (_, conversation, _) in CASES.items()
        for way in WAYS
        if way not in ONE_QUESTION or ([role for role, _ in conversation][-2:] in (["user"], ["system", "user"]))
        if not (way == "chat" and conversation[0][0] == "system")  # it has no option for it
    ],
)
def test_the_model_is_given_the_same_prompt(way: str, case: str, served: Served) -> None:
    expert, conversation, tokens = CASES[case]
    assert prompt_tokens(way, served, expert, conversation) == tokens


def test_a_plain_conversation_goes_on(home: Coe) -> None:
    """`ask -c` and the second turn of a chat have the first question and its answer in the prompt."""
    ask = ["ask", "-e", "plain", "--max-tokens", "3", "--temperature", "0", "--format", "json"]
    first = json.loads(home.run(*ask, "ab").check().stdout)
    again = json.loads(home.run(*ask, "-c", "cd").check().stdout)
    whole = one_turn("", "ab") + first["answer"].strip() + "\n\n" + one_turn("", "cd")
    assert again["usage"]["prompt_tokens"] == len(whole.encode())
    said = home.run(
        "chat", "-e", "plain", "--no-log", "--max-tokens", "3", "--temperature", "0", stdin="ab\ncd\n/stats\n"
    )
    both = first["usage"]["prompt_tokens"] + again["usage"]["prompt_tokens"]
    assert f"prompts {both} tokens" in said.check().stderr


def test_a_raw_prompt_is_given_byte_for_byte(served: Served) -> None:
    for text in ("def f(x):", "\n\ndef f(x):\n    ", "  {question} "):
        body = {"model": "plain", "prompt": text, "max_tokens": 1}
        assert served.request("POST", "/v1/completions", body).json["usage"]["prompt_tokens"] == len(text)
    body = {"model": "plain", "prompt": "a</s>b", "max_tokens": 1}
    allowed = served.request("POST", "/v1/completions", body).json["usage"]["prompt_tokens"]
    refused = served.request("POST", "/v1/completions", body | {"allow_special_tokens": False})
    assert (allowed, refused.json["usage"]["prompt_tokens"]) == (3, 6)


def test_control_tokens_for_those_who_want_them(served: Served) -> None:
    body = {"model": "plain", "messages": [{"role": "user", "content": "a</s>b"}], "max_tokens": 1}
    answer = served.request("POST", "/v1/chat/completions", body | {"allow_special_tokens": True})
    assert answer.json["usage"]["prompt_tokens"] == len(one_turn("", "a</s>b")) - 3
    options = ["--no-log", "--max-tokens", "1", "--format", "json", "--allow-special-tokens"]
    said = served.coe.run("ask", "-e", "plain", *options, "a</s>b").check().stdout
    assert json.loads(said)["usage"]["prompt_tokens"] == len(one_turn("", "a</s>b")) - 3


@pytest.mark.long
def test_a_hostile_template_is_an_error_and_the_next_question_is_answered(served: Served) -> None:
    body = {"model": "hostile", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    refused = served.request("POST", "/v1/chat/completions", body)
    assert refused.status >= 400 and "`hostile-model`" in refused.error["message"]
    for serve in ("0", "1"):
        said = served.coe.run("ask", "-e", "hostile", "--no-log", "Hi", COE_NO_SERVE=serve)
        assert said.code == 4 and "`hostile-model`" in said.stderr
    assert prompt_tokens("/v1", served, "plain", [("user", "Hi")]) == len(one_turn("", "Hi"))


NUL, HALF = "Be\0x", "\ud800"
HI = {"messages": [{"role": "user", "content": "Hi"}]}


def _called(**function: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"a": {"enum": ["x"]}}}
    return {**HI, "tools": [{"type": "function", "function": {"name": "f", "parameters": parameters, **function}}]}


def _schema(**schema: Any) -> dict[str, Any]:
    return {**HI, "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}}


PLACES: list[tuple[str, Callable[[str], dict[str, Any]], str]] = [
    ("/v1/chat/completions", lambda bad: {"messages": [{"role": "system", "content": bad}, *HI["messages"]]}, "messages.0.content"),
    ("/v1/chat/completions", lambda bad: {"messages": [{"role": "user", "content": [{"type": "text", "text": bad}]}]}, "messages.0.content.0.text"),
    ("/v1/chat/completions", lambda bad: {**HI, "stop": [bad]}, "stop.0"),
    ("/v1/chat/completions", lambda bad: {**HI, "metadata": {"k": bad}}, "metadata.k"),
    ("/v1/chat/completions", lambda bad: _called(description=bad), "tools.0.function.description"),
    ("/v1/chat/completions", lambda bad: _called(parameters={"properties": {"a": {"enum": [bad]}}}), "tools.0.function.parameters.properties.a.enum.0"),
    ("/v1/chat/completions", lambda bad: _called(parameters={"properties": {bad: {}}}), "tools.0.function.parameters.properties"),
    ("/v1/chat/completions", lambda bad: _schema(const=bad), "response_format.json_schema.schema.const"),
    ("/v1/chat/completions", lambda bad: {**HI, "guided_regex": bad}, "guided_regex"),
    ("/v1/chat/completions", lambda bad: {**HI, "guided_choice": ["a", bad]}, "guided_choice.1"),
    ("/v1/chat/completions", lambda bad: {**HI, "grammar": f'start: "{bad}"'}, "grammar"),
    ("/v1/chat/completions", lambda bad: {"messages": [*HI["messages"], {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": json.dumps({"a": bad})}}]}]}, "messages.1.tool_calls.0.function.arguments"),
    ("/v1/completions", lambda bad: {"prompt": bad}, "prompt"),
    ("/v1/completions", lambda bad: {"prompt": ["a", bad]}, "prompt.1"),
    ("/v1/responses", lambda bad: {"instructions": "x", "input": [{"role": "user", "content": bad}]}, "input.0.content"),
    ("/v1/responses", lambda bad: {"instructions": bad, "input": "x"}, "instructions"),
    ("/v1/responses", lambda bad: {"input": "x", "metadata": {"k": bad}}, "metadata.k"),
    ("/v1/messages", lambda bad: {**HI, "system": [{"type": "text", "text": bad}]}, "system.0.text"),
    ("/v1/messages", lambda bad: {"system": "x", "messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": bad}]}]}, "messages.0.content.0.content"),
    ("/v1/messages", lambda bad: {"messages": [*HI["messages"], {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {"a": bad}}]}]}, "messages.1.content.0.input.a"),
    ("/v1/messages/count_tokens", lambda bad: {**HI, "system": bad}, "system"),
    ("/api/chat", lambda bad: {"messages": [{"role": "tool", "content": bad}]}, "messages.0.content"),
    ("/api/generate", lambda bad: {"system": bad, "prompt": "x"}, "system"),
    ("/api/generate", lambda bad: {"prompt": "x", "options": {"stop": [bad]}}, "options.stop.0"),
    ("/completion", lambda bad: {"prompt": bad}, "prompt"),
    ("/infill", lambda bad: {"input_prefix": "x", "input_suffix": "y", "input_extra": [{"filename": bad, "text": "t"}]}, "input_extra.0.filename"),
    ("/v1/embeddings", lambda bad: {"input": ["a", bad]}, "input.1"),
    ("/api/embed", lambda bad: {"input": bad}, "input"),
]  # fmt: skip


@pytest.mark.parametrize(("bad", "says"), [(NUL, "U+0000"), (HALF, "unpaired surrogate")], ids=["nul", "surrogate"])
@pytest.mark.parametrize(("path", "body", "field"), PLACES)
def test_text_that_no_model_can_be_given_is_refused_over_http_by_its_field(
    path: str, body: Callable[[str], dict[str, Any]], field: str, bad: str, says: str, served: Served
) -> None:
    answer = served.request("POST", path, {"model": "plain", **body(bad)})
    said = answer.json["error"]
    message = said if isinstance(said, str) else said["message"]
    assert answer.status == 400 and message.startswith(f"`{field}`: ") and says in message, answer.body
    assert not isinstance(said, dict) or said.get("param", field) == field


IMAGE = [{"type": "image", "source": {}}]
MISPLACED: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/responses", {"instructions": "x", "input": [{"type": "reasoning"}, {"role": "user", "content": IMAGE}]}, "input.1.content.0.type"),
    ("/v1/messages", {**HI, "system": IMAGE}, "system.0.type"),
    ("/v1/messages", {"system": "x", "messages": [*HI["messages"], {"role": "user", "content": IMAGE}]}, "messages.1.content.0.type"),
    ("/v1/messages", {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "x"}, *IMAGE]}]}, "messages.0.content.1.type"),
    ("/api/chat", {"system": "x", "messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
    ("/api/chat", {**HI, "options": {"temperature": -1}}, "options.temperature"),
    ("/api/chat", {**HI, "options": {"mirostat": 2}}, "options.mirostat"),
    ("/api/chat", {**HI, "options": {"num_predict": "x"}}, "options.num_predict"),
    ("/api/generate", {"prompt": "x", "images": ["AAAA"]}, "images.0.type"),
    ("/v1/responses", {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}, {"type": "function_call", "call_id": "d", "name": "g", "arguments": "["}]}, "input.1.arguments"),
    ("/v1/responses", {"input": [{"type": "function_call", "call_id": "c", "name": "a b"}]}, "input.0.name"),
    ("/v1/responses", {"input": [{"type": "function_call", "call_id": 5, "name": "f"}]}, "input.0.call_id"),
    ("/v1/responses", {"input": [{"role": "user", "content": "x"}, {"type": "function_call_output", "call_id": "c", "output": 5}]}, "input.1.output"),
    ("/v1/responses", {"input": "x", "tools": [{"type": "function", "name": "a b"}]}, "tools.0.name"),
    ("/v1/responses", {"input": "x", "reasoning": {"effort": "much"}}, "reasoning.effort"),
    ("/v1/messages", {"messages": [*HI["messages"], {"role": "assistant", "content": [{"type": "text", "text": "x"}, {"type": "tool_use", "id": "c", "name": "f", "input": []}]}]}, "messages.1.content.1.input"),
    ("/v1/messages", {"messages": [*HI["messages"], {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "a b", "input": {}}]}]}, "messages.1.content.0.name"),
    ("/v1/messages", {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "tool_result", "tool_use_id": "c", "content": 5}]}]}, "messages.0.content.1.content"),
    ("/v1/messages", {**HI, "tools": [{"name": "f", "input_schema": 5}]}, "tools.0.input_schema"),
    ("/v1/messages", {**HI, "stop_sequences": [""]}, "stop_sequences.0"),
    ("/completion", {"prompt": "x", "n_probs": 99}, "n_probs"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "field"), MISPLACED)
def test_a_field_is_called_as_its_client_wrote_it(path: str, body: dict[str, Any], field: str, served: Served) -> None:
    answer = served.request("POST", path, {"model": "plain", "max_tokens": 1, **body})
    assert answer.status == 400 and f"`{field}`: " in answer.body.decode(), answer.body
    assert b"Value error" not in answer.body


@pytest.mark.parametrize("bad", [NUL, HALF], ids=["nul", "surrogate"])
def test_text_that_no_model_can_be_given_is_refused_in_process(bad: str, home: Coe) -> None:
    asked: list[tuple[Any, dict[str, Any], str]] = [
        (bad, {}, "question"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": bad}], {}, "question.1.content"),
        ("Hi", {"system": bad}, "system"),
        ("Hi", {"stop": [bad]}, "stop.0"),
        ("Hi", {"json_schema": {"enum": [bad]}}, "json_schema.enum.0"),
        ("Hi", {"expert": bad}, "expert"),
    ]
    with Client(catalog_file=home.config / "experts.yaml", serve=False) as client:
        for question, options, field in asked:
            with pytest.raises(UsageError, match=f"^`{field}` has "):
                client.ask(question, **options)


ROWS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": NUL}, "`prompt`"),
    ({"prompt": "Hi", "system": NUL}, "`system`"),
    ({"messages": [{"role": "user", "content": NUL}]}, "`messages.0.content`"),
    (
        {
            "custom_id": "1", "method": "POST", "url": "/v1/chat/completions",
            "body": {"model": "plain", "messages": [{"role": "user", "content": NUL}]},
        },
        "`body.messages.0.content`",
    ),
]  # fmt: skip


def test_a_nul_in_batch_chat_ask_and_catalog_names_its_field(home: Coe, tmp_path: Path) -> None:
    (home.folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row, _ in ROWS))
    said = home.run("batch", "in.jsonl", "-e", "plain", "-o", "nul.jsonl")
    assert said.code != 0
    out = (home.folder / "nul.jsonl").read_text().splitlines()
    assert len(out) == len(ROWS), said
    for line, (_, field) in zip(out, ROWS, strict=True):
        assert field in line and "U+0000" in line
    chat = home.run("chat", "-e", "plain", "--no-log", stdin=f"{NUL}\n")
    assert chat.code == 2 and "`question` has the character U+0000" in chat.stderr
    assert home.run("ask", "-e", "plain", "--no-log", stdin=NUL).code == 2
    broken = tmp_path / "broken.yaml"
    broken.write_text('experts: {general_reasoner: {system_prompt: "a\\0b"}}\n')
    said = home.run("ask", "--catalog", str(broken), "--no-log", "Hi")
    assert said.code == 3 and "system_prompt" in said.stderr and "U+0000" in said.stderr
