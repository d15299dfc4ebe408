"""Kinds of requests that other servers are known by, with what each expects: a table from the public behaviour of llama.cpp's and
vLLM's server tests, in words and requests of our own. What does not apply, and what is refused here, is in docs/api.md."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import Coe
from model_store.saying_model import write_saying_model
from serving import Response, Served, serving
from test_api_fill_in import QWEN, add_tokens

CHAT, TEXT, NATIVE, FILL = "/v1/chat/completions", "/v1/completions", "/completion", "/infill"
TOKENIZE, DETOKENIZE, APPLY, PROPS, SLOTS = "/tokenize", "/detokenize", "/apply-template", "/props", "/slots"
MESSAGES, COUNT, RESPONSES = "/v1/messages", "/v1/messages/count_tokens", "/v1/responses"
HI = [{"role": "user", "content": "Hi"}]
SYSTEM = [{"role": "system", "content": "Book"}, *HI]
ANSWERED: dict[str, dict[str, Any]] = {
    CHAT: {"messages": HI, "max_tokens": 4},
    TEXT: {"prompt": "Hi ", "max_tokens": 4},
    NATIVE: {"prompt": "Hi ", "n_predict": 4},
    FILL: {"input_prefix": "a", "input_suffix": "b", "n_predict": 4},
    MESSAGES: {"messages": HI, "max_tokens": 4},
    COUNT: {"messages": HI},
    RESPONSES: {"input": "Hi", "max_output_tokens": 4},
    TOKENIZE: {"content": "What is the capital of France?"},
    DETOKENIZE: {"tokens": [5, 6, 7]},
    APPLY: {"messages": HI},
}
BEGUN = [*HI, {"role": "assistant", "content": "Whill"}]
PLACE = {"type": "object", "properties": {"city": {"enum": ["Rome"]}}, "required": ["city"], "additionalProperties": False}  # fmt: skip
TOOL = {"type": "function", "function": {"name": "look", "parameters": PLACE}}
ANTHROPIC_TOOL = {"name": "look", "input_schema": PLACE}
RESULT: list[dict[str, Any]] = [
    *HI,
    {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "look", "input": {"city": "Rome"}}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "Sunny"}]},
]
CHATTY = (
    "{{ strftime_now('%Y') }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if enable_thinking is defined and not enable_thinking %}/no_think{% endif %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
Check = Callable[[Response], Any]


def said(answer: Response) -> str:
    """The text of an answer, whatever the API."""
    body = answer.json
    if "choices" in body:
        choice = body["choices"][0]
        return str(choice["message"]["content"] if "message" in choice else choice["text"])
    if "output" in body:
        return str(body["output"][0]["content"][0]["text"])
    return str(body["content"] if isinstance(body["content"], str) else body["content"][0]["text"])


def events(answer: Response) -> list[dict[str, Any]]:
    lines = answer.body.decode().splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def texts(count: int) -> Check:
    return lambda answer: len(answer.json["choices"]) == count


def matches(pattern: str) -> Check:
    return lambda answer: re.fullmatch(pattern, said(answer))


def refused(param: str) -> Check:
    return lambda answer: answer.status == 400 and answer.error["param"] == param


def wrong(answer: Response) -> bool:
    return answer.status in (400, 404) and "error" in answer.json


def streamed(answer: Response) -> bool:
    """Pieces of one id; one with the role first, one with the reason last."""
    choices = [event["choices"][0] for event in events(answer)]
    ids = {event["id"] for event in events(answer)}
    reasons = [choice["finish_reason"] for choice in choices]
    return len(ids) == 1 and reasons[-1] == "length" and reasons.count(None) == len(reasons) - 1


def calls(answer: Response) -> bool:
    choice = answer.json["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    arguments = json.loads(call["function"]["arguments"])
    return choice["finish_reason"] == "tool_calls" and arguments == {"city": "Rome"} and bool(call["id"])


def usage_at_the_end(answer: Response) -> bool:
    usages = [event["usage"] for event in events(answer)]
    last = usages[-1]
    return usages[:-1] == [None] * (len(usages) - 1) and last["total_tokens"] == last["prompt_tokens"] + 4


def blocks(answer: Response) -> bool:
    """Anthropic's events in their order, each block closed."""
    found = events(answer)
    kinds = [event["type"] for event in found]
    opened, closed = ([e["index"] for e in found if e["type"] == f"content_block_{k}"] for k in ("start", "stop"))
    return kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"] and opened == closed


def top(count: int) -> Check:
    return lambda answer: {len(e["top_logprobs"]) for e in answer.json["choices"][0]["logprobs"]["content"]} == {count}


LLAMA: list[tuple[str, str, dict[str, Any], Check]] = [
    ("a completion", NATIVE, {}, lambda a: a.json["timings"]["predicted_n"] == 4 and a.json["truncated"] is False),
    ("a completion's counts", NATIVE, {}, lambda a: (a.json["tokens_evaluated"], a.json["stop_type"]) == (3, "limit")),
    ("a completion in chunks", NATIVE, {"stream": True}, lambda a: [e["stop"] for e in events(a)][-1] is True),
    ("a completion's last chunk", NATIVE, {"stream": True}, lambda a: "timings" in events(a)[-1]),
    ("a completion by OpenAI's name", TEXT, {}, lambda a: a.json["choices"][0]["finish_reason"] == "length"),
    ("that in chunks", TEXT, {"stream": True}, streamed),
    ("a fingerprint", TEXT, {}, lambda a: a.json["system_fingerprint"].startswith("fp_")),
    ("stop strings in chunks", TEXT, {"stream": True, "stop": ["User:\n", "Assistant:\n"]}, lambda a: events(a)),
    ("without a cache", NATIVE, {"cache_prompt": False}, said),
    ("a prompt that is too long", NATIVE, {"prompt": "x" * 9000}, lambda a: a.status == 400),
    ("token ids", NATIVE, {"prompt": [5, 6, 7]}, lambda a: a.json["tokens_evaluated"] == 3),
    ("several prompts of ids", NATIVE, {"prompt": [[5, 6], [5, 6]]}, lambda a: a.json[0]["content"] == a.json[1]["content"]),
    ("texts and ids", NATIVE, {"prompt": ["Hi ", [5, 6]]}, lambda a: [each["tokens_evaluated"] for each in a.json] == [3, 2]),
    ("texts and ids by OpenAI's name", TEXT, {"prompt": [[5, 6], "Hi "]}, texts(2)),
    ("an answer that the context ends", NATIVE, {"prompt": "x" * 500 + " ", "n_predict": -1}, lambda a: (a.json["truncated"], a.json["stop_type"]) == (True, "limit")),
    ("several prompts", NATIVE, {"prompt": ["a", "b"]}, lambda a: [each["index"] for each in a.json] == [0, 1]),
    ("probabilities", NATIVE, {"n_probs": 10}, lambda a: [len(e["top_logprobs"]) for e in a.json["completion_probabilities"]] == [10] * 4),
    ("probabilities' bytes", NATIVE, {"n_probs": 1}, lambda a: all(e["bytes"] and e["logprob"] <= 0 for e in a.json["completion_probabilities"])),
    ("probabilities in chunks", NATIVE, {"n_probs": 3, "stream": True}, lambda a: sum(len(e.get("completion_probabilities", ())) for e in events(a)) == 4),
    ("filling in", FILL, {"model": "coder"}, said),
    ("filling in with a beginning", FILL, {"model": "coder", "prompt": "int n = "}, said),
    ("filling in with files", FILL, {"model": "coder", "input_extra": [{"filename": "a.h", "text": "x"}]}, said),
    ("a file without all", FILL, {"model": "coder", "input_extra": [{}]}, wrong),
    ("a file with a name alone", FILL, {"model": "coder", "input_extra": [{"filename": "ok"}]}, wrong),
    ("a file with a number for a name", FILL, {"model": "coder", "input_extra": [{"filename": 1, "text": "x"}]}, wrong),
    ("a file with a number for a text", FILL, {"model": "coder", "input_extra": [{"filename": "a", "text": 1}]}, wrong),
    ("filling in where no model can", FILL, {}, refused("suffix")),
    ("a chat with a system text", CHAT, {"messages": SYSTEM}, lambda a: a.json["choices"][0]["message"]["role"] == "assistant"),
    ("a chat's id", CHAT, {}, lambda a: "cmpl" in a.json["id"]),
    ("a chat's usage", CHAT, {}, lambda a: a.json["usage"]["completion_tokens"] == 4),
    ("a chat of parts", CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]}, said),
    ("a chat in chunks", CHAT, {"stream": True}, streamed),
    ("a chat's first chunk", CHAT, {"stream": True}, lambda a: events(a)[0]["choices"][0]["delta"]["role"] == "assistant"),
    ("a chat's last chunk", CHAT, {"stream": True}, lambda a: "content" not in events(a)[-1]["choices"][0]["delta"]),
    ("usage in chunks", CHAT, {"stream": True, "stream_options": {"include_usage": True}}, usage_at_the_end),
    ("an object by its schema", CHAT, {"response_format": {"type": "json_object", "schema": {"const": "42"}}, "max_tokens": 9}, matches('"42"')),
    ("an array by its schema", CHAT, {"response_format": {"type": "json_object", "schema": {"type": "array", "items": {"const": 1}, "minItems": 2, "maxItems": 2}}, "max_tokens": 19}, matches(r"\[1, ?1\]")),
    ("a schema by name", CHAT, {"response_format": {"type": "json_schema", "json_schema": {"schema": {"const": "foo"}}}, "max_tokens": 9}, matches('"foo"')),
    ("any object", CHAT, {"response_format": {"type": "json_object"}, "max_tokens": 9}, lambda a: said(a).startswith("{")),
    ("a format that is none", CHAT, {"response_format": {"type": "sound"}}, wrong),
    ("a schema that is a number", CHAT, {"response_format": {"type": "json_object", "schema": 123}}, wrong),
    ("a schema whose type is a number", CHAT, {"response_format": {"type": "json_object", "schema": {"type": 123}}}, wrong),
    ("a schema of no type", CHAT, {"response_format": {"type": "json_object", "schema": {"type": "hiccup"}}}, wrong),
    ("a schema beside", CHAT, {"json_schema": {"const": "42"}, "max_tokens": 9}, matches('"42"')),
    ("a grammar", CHAT, {"grammar": 'start: "a"{5}', "max_tokens": 9}, matches("a{5}")),
    ("no messages", CHAT, {"messages": None}, wrong),
    ("messages that are a text", CHAT, {"messages": "string"}, wrong),
    ("messages of numbers", CHAT, {"messages": [123]}, wrong),
    ("a message of nothing", CHAT, {"messages": [{}]}, wrong),
    ("a role that is a number", CHAT, {"messages": [{"role": 123}]}, wrong),
    ("a content that is a number", CHAT, {"messages": [{"role": "system", "content": 123}]}, wrong),
    ("a message of nothing behind another", CHAT, {"messages": [*HI, {}]}, wrong),
    ("log probabilities", CHAT, {"logprobs": True, "top_logprobs": 10}, top(10)),
    ("log probabilities in chunks", CHAT, {"logprobs": True, "top_logprobs": 3, "stream": True}, lambda a: sum(len((e["choices"][0]["logprobs"] or {"content": []})["content"]) for e in events(a)) == 4),
    ("a conversation that is too long", CHAT, {"messages": SYSTEM * 100}, lambda a: a.error["code"] == "context_length_exceeded"),
    ("that in chunks", CHAT, {"messages": SYSTEM * 100, "stream": True}, lambda a: a.error["code"] == "context_length_exceeded"),
    ("several answers", CHAT, {"n": 2}, texts(2)),
    ("a function that must be called", CHAT, {"tools": [TOOL], "tool_choice": "required", "max_tokens": 99, "parallel_tool_calls": False}, calls),
    ("a named function", CHAT, {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "look"}}, "max_tokens": 99}, calls),
    ("a function in chunks", CHAT, {"tools": [TOOL], "tool_choice": "required", "max_tokens": 99, "stream": True}, lambda a: events(a)[-1]["choices"][0]["finish_reason"] == "tool_calls"),
    ("functions that may not be called", CHAT, {"tools": [TOOL], "tool_choice": "none"}, lambda a: "tool_calls" not in a.json["choices"][0]["message"]),
    ("no functions", CHAT, {"tools": []}, lambda a: "tool_calls" not in a.json["choices"][0]["message"]),
    ("null for functions", CHAT, {"tools": None, "tool_choice": None}, said),
    ("what a function gave back", CHAT, {"messages": [*HI, {"role": "assistant", "content": None, "tool_calls": [{"id": "x", "type": "function", "function": {"name": "look", "arguments": "{}"}}]}, {"role": "tool", "tool_call_id": "x", "content": "Sunny"}]}, said),
    ("an image", CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}]}, wrong),
    ("a file of the server", CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file://a.jpeg"}}]}]}, wrong),
    ("an adapter", NATIVE, {"lora": [{"id": 0, "scale": 1}]}, wrong),
    ("Anthropic's message", MESSAGES, {}, lambda a: (a.json["type"], a.json["role"], a.json["content"][0]["type"]) == ("message", "assistant", "text")),
    ("its reason", MESSAGES, {}, lambda a: a.json["stop_reason"] == "max_tokens"),
    ("its usage", MESSAGES, {}, lambda a: all(isinstance(a.json["usage"][k], int) for k in ("input_tokens", "output_tokens", "cache_read_input_tokens"))),
    ("no figures of llama.cpp in it", MESSAGES, {}, lambda a: "timings" not in a.json),
    ("with a system text", MESSAGES, {"system": "Be kind."}, said),
    ("with parts", MESSAGES, {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]}, said),
    ("with earlier turns", MESSAGES, {"messages": [*HI, {"role": "assistant", "content": "a"}, *HI]}, said),
    ("in events", MESSAGES, {"stream": True}, blocks),
    ("its first event", MESSAGES, {"stream": True}, lambda a: events(a)[0]["message"]["usage"]["input_tokens"] > 0 and events(a)[0]["message"]["content"] == []),
    ("its text deltas", MESSAGES, {"stream": True}, lambda a: {e["delta"]["type"] for e in events(a) if e["type"] == "content_block_delta"} == {"text_delta"}),
    ("a count of tokens", COUNT, {}, lambda a: list(a.json) == ["input_tokens"] and a.json["input_tokens"] > 0),
    ("a count with a system text", COUNT, {"system": "Be kind."}, lambda a: a.json["input_tokens"] > 10),
    ("a count without a limit", COUNT, {"messages": [{"role": "user", "content": "word " * 9000}]}, lambda a: a.json["input_tokens"] > 9000),
    ("a function of Anthropic's", MESSAGES, {"tools": [ANTHROPIC_TOOL], "tool_choice": {"type": "any"}, "max_tokens": 99}, lambda a: a.json["stop_reason"] == "tool_use" and a.json["content"][0]["input"] == {"city": "Rome"}),
    ("in events with a function", MESSAGES, {"tools": [ANTHROPIC_TOOL], "tool_choice": {"type": "any"}, "max_tokens": 99, "stream": True}, blocks),
    ("a function that may be called", MESSAGES, {"tools": [ANTHROPIC_TOOL]}, lambda a: a.json["content"]),
    ("a function's result", MESSAGES, {"messages": RESULT}, said),
    ("a result beside a text", MESSAGES, {"messages": [*RESULT[:2], {"role": "user", "content": [{"type": "text", "text": "Here:"}, *RESULT[2]["content"]]}]}, said),
    ("a result that is an error", MESSAGES, {"messages": [*RESULT[:2], {"role": "user", "content": [{**RESULT[2]["content"][0], "is_error": True}]}]}, said),
    ("an image for Anthropic's", MESSAGES, {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}]}]}, lambda a: a.status == 400 and "images" in a.json["error"]["message"]),
    ("stop sequences", MESSAGES, {"stop_sequences": ["\n", "END"]}, lambda a: a.json["type"] == "message"),
    ("a temperature", MESSAGES, {"temperature": 0.5}, said),
    ("a nucleus", MESSAGES, {"top_p": 0.9}, said),
    ("candidates", MESSAGES, {"top_k": 40}, said),
    ("metadata", MESSAGES, {"metadata": {"user_id": "x"}}, said),
    ("thoughts", MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 50}}, said),
    ("no messages for Anthropic's", MESSAGES, {"messages": None}, lambda a: a.json["error"]["type"] == "invalid_request_error"),
    ("a response", RESPONSES, {}, lambda a: a.json["id"].startswith("resp_") and a.json["output"][0]["id"].startswith("msg_")),
    ("a response to turns", RESPONSES, {"input": SYSTEM}, said),
    ("a response in events", RESPONSES, {"stream": True}, lambda a: len({e["item_id"] for e in events(a) if "item_id" in e}) == 1),
    ("a response's text in events", RESPONSES, {"stream": True}, lambda a: "".join(e["delta"] for e in events(a) if e["type"] == "response.output_text.delta") == events(a)[-1]["response"]["output"][0]["content"][0]["text"]),
    ("a response by a schema", RESPONSES, {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"const": "foo"}}}, "max_output_tokens": 9}, matches('"foo"')),
    ("a response that is any object", RESPONSES, {"text": {"format": {"type": "json_object"}}}, lambda a: said(a).startswith("{")),
    ("a response as text", RESPONSES, {"text": {"format": {"type": "text"}}}, said),
    ("a text's tokens", TOKENIZE, {}, lambda a: len(a.json["tokens"]) > 5 and all(isinstance(t, int) for t in a.json["tokens"])),
    ("with the token that begins a text", TOKENIZE, {"model": "begun", "add_special": True}, lambda a: a.json["tokens"][0] == 256),
    ("with what each stands for", TOKENIZE, {"content": "媽 and 🤗", "with_pieces": True}, lambda a: b"".join(p.encode() if isinstance(p, str) else bytes(p) for p in (t["piece"] for t in a.json["tokens"])).decode() == "媽 and 🤗"),
    ("tokens' text", DETOKENIZE, {}, lambda a: len(a.json["content"]) == 3),
    ("a conversation's prompt", APPLY, {}, lambda a: a.json["prompt"].endswith("user: Hi\nassistant: ")),
    ("with null for functions", APPLY, {"tools": None}, lambda a: "look" not in a.json["prompt"]),
    ("with no functions", APPLY, {"tools": []}, lambda a: "look" not in a.json["prompt"]),
    ("with a function", APPLY, {"tools": [TOOL]}, lambda a: '"look"' in a.json["prompt"]),
    ("with a turn of the assistant's begun", APPLY, {"model": "chatty", "add_generation_prompt": True}, lambda a: a.json["prompt"].endswith("<assistant>")),
    ("without one", APPLY, {"model": "chatty", "add_generation_prompt": False}, lambda a: "<assistant>" not in a.json["prompt"]),
    ("with today's date", APPLY, {"model": "chatty"}, lambda a: str(datetime.now(UTC).year) in a.json["prompt"]),
    ("without thoughts", APPLY, {"model": "chatty", "chat_template_kwargs": {"enable_thinking": False}}, lambda a: "/no_think" in a.json["prompt"]),
    ("a beginning of the answer", APPLY, {"model": "chatty", "messages": BEGUN, "continue_final_message": True}, lambda a: a.json["prompt"].endswith("<assistant>Whill")),
    ("that in parts", APPLY, {"model": "chatty", "messages": [*HI, {"role": "assistant", "content": [{"type": "text", "text": "Wh"}, {"type": "text", "text": "ill"}]}], "continue_final_message": True}, lambda a: a.json["prompt"].endswith("<assistant>Whill")),
    ("properties", PROPS, {}, lambda a: a.json["total_slots"] >= 1 and a.json["default_generation_settings"]["n_ctx"] == 512 and a.json["model_path"] == "tiny"),
    ("slots", SLOTS, {}, lambda a: all({"id", "n_ctx", "is_processing"} <= set(each) for each in a.json) and "params" not in str(a.json)),
    ("timings with each token", CHAT, {"stream": True, "timings_per_token": True, "stream_options": {"include_usage": True}}, lambda a: events(a)[-1]["timings"]["predicted_n"] <= 4 and "timings" not in events(a)[0]),
    ("ids of the answer", NATIVE, {"return_tokens": True}, lambda a: len(a.json["tokens"]) == 4 and "completion_probabilities" not in a.json),
    ("no ids of the answer", NATIVE, {}, lambda a: a.json["tokens"] == [] and a.json["has_new_line"] is False),
    ("ids beside probabilities", NATIVE, {"n_probs": 2}, lambda a: all(e["id"] >= 0 and all(t["id"] >= 0 for t in e["top_logprobs"]) for e in a.json["completion_probabilities"])),
    ("past the end", NATIVE, {"ignore_eos": True, "n_predict": 40}, lambda a: a.json["tokens_predicted"] == 40),
    ("a word that ends it", NATIVE, {"stop": ["e"], "n_predict": 9}, lambda a: (a.json["stop_type"], a.json["stopping_word"]) == ("word", "e")),
    ("several completions", NATIVE, {"n_cmpl": 2}, lambda a: [each["index"] for each in a.json] == [0, 1]),
    ("a response by no schema", RESPONSES, {"text": {"format": {"type": "json_schema", "name": "x"}}}, wrong),
]  # fmt: skip

VLLM: list[tuple[str, str, dict[str, Any], Check]] = [
    ("no log probabilities", CHAT, {"logprobs": False}, lambda a: a.json["choices"][0]["logprobs"] is None),
    ("those of the tokens alone", CHAT, {"logprobs": True, "top_logprobs": 0}, top(0)),
    ("some", CHAT, {"logprobs": True, "top_logprobs": 5}, top(5)),
    ("too many", CHAT, {"logprobs": True, "top_logprobs": 21}, refused("top_logprobs")),
    ("too many in chunks", CHAT, {"logprobs": True, "top_logprobs": 30, "stream": True}, refused("top_logprobs")),
    ("none of a completion", TEXT, {"logprobs": None}, lambda a: a.json["choices"][0]["logprobs"] is None),
    ("those of a completion", TEXT, {"prompt": [5] * 5, "logprobs": 5}, lambda a: all(1 < len(e) <= 6 for e in a.json["choices"][0]["logprobs"]["top_logprobs"])),
    ("a completion's tokens alone", TEXT, {"logprobs": 0}, lambda a: len(a.json["choices"][0]["logprobs"]["token_logprobs"]) == 4),
    ("too many of a completion", TEXT, {"logprobs": 21}, refused("logprobs")),
    ("too many of a completion in chunks", TEXT, {"logprobs": 30, "stream": True}, refused("logprobs")),
    ("beside a choice", CHAT, {"logprobs": True, "top_logprobs": 5, "structured_outputs": {"choice": ["a", "b"]}}, lambda a: all(e["logprob"] >= -9999 for each in a.json["choices"][0]["logprobs"]["content"] for e in each["top_logprobs"])),
    ("below nothing of a prompt", CHAT, {"prompt_logprobs": -1}, refused("prompt_logprobs")),
    ("a chat", CHAT, {"max_completion_tokens": 5, "max_tokens": None}, lambda a: a.json["usage"]["completion_tokens"] == 5),
    ("the same in chunks", CHAT, {"stream": True}, streamed),
    ("no usage in chunks", CHAT, {"stream": True, "stream_options": {"include_usage": False}}, lambda a: not any(e.get("usage") for e in events(a))),
    ("usage after them", CHAT, {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": False}}, usage_at_the_end),
    ("usage with each of them where none is wanted", TEXT, {"stream": True, "stream_options": {"include_usage": False, "continuous_usage_stats": True}}, lambda a: not any(e.get("usage") for e in events(a))),
    ("usage after what has no chunks", CHAT, {"stream_options": {"include_usage": True}}, refused("stream_options")),
    ("no usage after what has no chunks", CHAT, {"stream_options": {"include_usage": None}}, refused("stream_options")),
    ("a completion's usage after what has no chunks", TEXT, {"stream_options": {"continuous_usage_stats": None}}, refused("stream_options")),
    ("a completion's usage after them", TEXT, {"stream": True, "stream_options": {"include_usage": True}}, usage_at_the_end),
    ("no options of them", TEXT, {"stream": True, "stream_options": {}}, lambda a: not any(e.get("usage") for e in events(a))),
    ("a choice", CHAT, {"structured_outputs": {"choice": ["Rust", "Ada"]}}, matches("Rust|Ada")),
    ("a schema", CHAT, {"structured_outputs": {"json": PLACE}, "max_tokens": 40}, lambda a: json.loads(said(a)) == {"city": "Rome"}),
    ("a pattern", CHAT, {"structured_outputs": {"regex": "[0-9]{2}"}}, matches("[0-9]{2}")),
    ("a grammar", CHAT, {"structured_outputs": {"grammar": 'start: "no"'}}, matches("no")),
    ("a pattern of a completion", TEXT, {"structured_outputs": {"regex": "[0-9]{2}"}}, matches("[0-9]{2}")),
    ("a pattern that is an object", CHAT, {"structured_outputs": {"regex": {"1": "x"}}}, refused("structured_outputs.regex")),
    ("a schema that is wrong", TEXT, {"structured_outputs": {"json": {"type": "object", "properties": {"foo": "bar"}}}}, wrong),
    ("a pattern that is wrong", TEXT, {"structured_outputs": {"regex": "[.*"}}, wrong),
    ("a grammar that is wrong", TEXT, {"structured_outputs": {"grammar": "root ::= nothing"}}, refused("structured_outputs.grammar")),
    ("an object", CHAT, {"response_format": {"type": "json_object"}}, lambda a: said(a).startswith("{")),
    ("an object by its schema", CHAT, {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": PLACE}}, "max_tokens": 40}, lambda a: json.loads(said(a)) == {"city": "Rome"}),
    ("text", CHAT, {"response_format": {"type": "text"}}, said),
    ("a field that a message has beside", CHAT, {"messages": [{"role": "user", "content": "Hi", "extra_field": "0"}]}, said),
    ("a content of parts", CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}, said),
    ("a seed beyond 64 bits", CHAT, {"seed": 2**63}, refused("seed")),
    ("a seed below 64 bits", CHAT, {"seed": -(2**63) - 1}, refused("seed")),
    ("three answers", CHAT, {"n": 3}, texts(3)),
    ("two answers in chunks", CHAT, {"n": 2, "stream": True}, lambda a: {e["choices"][0]["index"] for e in events(a)} == {0, 1}),
    ("two answers with a seed", CHAT, {"n": 2, "seed": 42}, texts(2)),
    ("one answer", CHAT, {"n": 1}, texts(1)),
    ("a completion", TEXT, {}, lambda a: a.json["usage"] | {"prompt_tokens_details": 0} == {"completion_tokens": 4, "prompt_tokens": 3, "total_tokens": 7, "prompt_tokens_details": 0}),
    ("cached tokens", TEXT, {}, lambda a: a.json["usage"]["prompt_tokens_details"]["cached_tokens"] >= 0),
    ("a completion of ids", TEXT, {"prompt": [5] * 5}, lambda a: a.json["usage"]["prompt_tokens"] == 5),
    ("a completion in chunks", TEXT, {"stream": True}, streamed),
    ("three of a completion", TEXT, {"n": 3, "temperature": 1.0, "seed": 42}, texts(3)),
    ("three of a completion in chunks", TEXT, {"n": 3, "stream": True}, lambda a: sum(e["choices"][0]["finish_reason"] is not None for e in events(a)) == 3),
    ("two prompts", TEXT, {"prompt": ["Hi ", "Hi "], "temperature": 0}, lambda a: len({c["text"] for c in a.json["choices"]}) == 1 and len(a.json["choices"]) == 2),
    ("two prompts of ids", TEXT, {"prompt": [[5], [5]], "temperature": 0}, lambda a: len({c["text"] for c in a.json["choices"]}) == 1),
    ("two prompts in chunks", TEXT, {"prompt": ["Hi ", "Hi "], "stream": True}, lambda a: {e["choices"][0]["index"] for e in events(a)} == {0, 1}),
    ("two of each of two prompts", TEXT, {"prompt": ["Hi ", "Hi "], "n": 2}, texts(4)),
    ("no prompts", TEXT, {"prompt": []}, refused("prompt")),
    ("the prompt before its answer", TEXT, {"echo": True}, lambda a: said(a).startswith("Hi")),
    ("a bias that is no object", CHAT, {"logit_bias": "x"}, refused("logit_bias")),
    ("null for the choice of functions", CHAT, {"tools": [TOOL], "tool_choice": None}, lambda a: a.status == 200),
    ("a function that must be called", CHAT, {"tools": [TOOL], "tool_choice": "required", "max_tokens": 99}, calls),
    ("a function that is not there", CHAT, {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}}, refused("tool_choice")),
    ("a choice without functions", CHAT, {"tool_choice": "required"}, refused("tool_choice")),
]  # fmt: skip


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("behaviour")
    coe = Coe(folder, folder / "models")
    write_saying_model(coe.models / "tiny", ["yes ", "no "], again_from=0)
    add_tokens(write_saying_model(coe.models / "coder", ["yes ", "no "], again_from=0), QWEN)
    chatty = write_saying_model(coe.models / "chatty", ["yes ", "no "], again_from=0)
    (chatty / "chat_template.jinja").write_text(CHATTY)
    begun = write_saying_model(coe.models / "begun", ["yes ", "no "], again_from=0)
    (begun / "tokenizer_config.json").write_text('{"add_bos_token": true, "bos_token": "<s>"}')
    with serving(coe) as it:
        yield it
    coe.end_all()


@pytest.mark.parametrize(
    ("path", "fields", "check"),
    [pytest.param(*rest, id=f"{suite}: {name} ({number})") for suite, table in (("llama.cpp", LLAMA), ("vLLM", VLLM)) for number, (name, *rest) in enumerate(table)],
)  # fmt: skip
def test_what_other_servers_are_known_by(served: Served, path: str, fields: dict[str, Any], check: Check) -> None:
    if path in (PROPS, SLOTS):
        answer = served.request("GET", f"{path}?model=tiny")
    else:
        answer = served.request("POST", path, {"model": "tiny", **ANSWERED[path], **fields})
    assert check(answer), (answer.status, answer.body)


def test_the_documentation_has_the_count() -> None:
    text = " ".join((Path(__file__).parents[1] / "docs" / "api.md").read_text(encoding="utf-8").split())
    assert f"{len(LLAMA)} kinds of llama.cpp's and {len(VLLM)} of vLLM's" in text


def test_fifty_streams_with_functions_at_once(served: Served) -> None:
    body = {
        "model": "tiny",
        **ANSWERED[CHAT],
        "tools": [TOOL],
        "tool_choice": "required",
        "max_tokens": 99,
        "stream": True,
    }
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: served.request("POST", CHAT, body), range(50)))
    for answer in answers:
        deltas = [call for e in events(answer) for call in e["choices"][0]["delta"].get("tool_calls", ())]
        assert json.loads("".join(each["function"]["arguments"] for each in deltas)) == {"city": "Rome"}, answer.body
        assert events(answer)[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert served.snapshot()["queue_length"] == 0


def test_addresses_without_v1(served: Served) -> None:
    for path in ("/chat/completions", "/completions", "/responses", "/messages"):
        with_v1 = served.request("POST", f"/v1{path}", {"model": "tiny", **ANSWERED[f"/v1{path}"]})
        without = served.request("POST", path, {"model": "tiny", **ANSWERED[f"/v1{path}"]})
        assert (without.status, said(without)) == (200, said(with_v1)), path
    assert served.request("GET", "/models").json == served.request("GET", "/v1/models").json
    assert served.request("GET", "/chat/completions").status == 405
