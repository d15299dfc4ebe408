"""Fields of other programs' requests: each one works, asks for nothing, or is refused by its name; none is dropped in silence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MODEL, Coe, copy_model
from model_store.tiny_model import write_tiny_model
from serving import Response, Served, serving
from test_api_behaviour import events, said

from coe_cli.core.answers.foreign_fields import OF_REQUESTS, unsupported
from coe_cli.core.batch.batch_rows import parse_line

CHAT, TEXT, NATIVE = "/v1/chat/completions", "/v1/completions", "/completion"
RESPONSES, MESSAGES, OLLAMA, RAW = "/v1/responses", "/v1/messages", "/api/chat", "/api/generate"
HI = [{"role": "user", "content": "Hi"}]
NO_SYSTEM = {"role": "system", "content": ""}
BEGUN = [*HI, {"role": "assistant", "content": "The capital of France is"}]
ASKED: dict[str, dict[str, Any]] = {
    "/detokenize": {},
    CHAT: {"messages": HI, "max_tokens": 4},
    TEXT: {"prompt": "Hi", "max_tokens": 4},
    NATIVE: {"prompt": "Hi", "n_predict": 4},
    RESPONSES: {"input": "Hi", "max_output_tokens": 4},
    MESSAGES: {"messages": HI, "max_tokens": 4},
    OLLAMA: {"messages": HI, "options": {"num_predict": 4}, "stream": False},
    RAW: {"prompt": "Hi", "options": {"num_predict": 4}, "stream": False},
    "/v1/embeddings": {"input": "Hi"},
    "/api/embed": {"input": "Hi"},
}

# field, values that ask for nothing, values that are refused
DECIDED: list[tuple[str, list[Any], list[Any]]] = [
    ("min_p", [0, 0.0, None], [0.05]),
    ("presence_penalty", [0, None], [0.5, -0.5]),
    ("frequency_penalty", [0.0], [1]),
    ("dynatemp_range", [0], [0.5]),
    ("dynatemp_exponent", [1.0], []),
    ("dry_multiplier", [0], [0.8]),
    ("dry_base", [1.75], []),
    ("dry_allowed_length", [2], []),
    ("dry_penalty_last_n", [-1, 64], []),
    ("dry_sequence_breakers", [["\n", ":"]], []),
    ("xtc_probability", [0], [0.5]),
    ("xtc_threshold", [0.1], []),
    ("mirostat", [0], [1, 2]),
    ("mirostat_tau", [5.0], []),
    ("mirostat_eta", [0.1], []),
    ("typical_p", [1, 1.0, 0], [0.9]),
    ("tfs_z", [1], [0.5]),
    ("top_n_sigma", [-1, 0], [1.5]),
    ("min_keep", [0], [2]),
    ("samplers", [[], None, ""], [["top_k"], "top_k;top_p"]),
    ("logit_bias", [{}, [], None], [{"5": 1}, [[5, 1.0]], [[5, False]], [["Hi", -1]]]),
    ("bad_words", [[]], [["a"]]),
    ("allowed_token_ids", [None, []], [[5]]),
    ("use_beam_search", [False], [True]),
    ("length_penalty", [1.0, 2.0], []),
    ("early_stopping", [False, True], []),
    ("logits_processors", [[]], [["x"]]),
    ("repeat_last_n", [64, 0, -1], []),
    ("n_predict", [-1, -2], [5]),
    ("n_probs", [0], [3]),
    ("post_sampling_probs", [False], [True]),
    ("t_max_predict_ms", [0], [100]),
    ("n_indent", [0], [4]),
    ("n_keep", [0, -1, 5], []),
    ("n_cache_reuse", [0, 256], []),
    ("cache_prompt", [True, False], []),
    ("id_slot", [-1, 0], []),
    ("return_tokens", [False], [True]),
    ("return_token_ids", [False, None], [True]),
    ("return_tokens_as_token_ids", [False], [True]),
    ("response_fields", [[]], [["content"]]),
    ("sse_ping_interval", [-1], [5]),
    ("lora", [[]], [[{"id": 0, "scale": 1}]]),
    ("skip_special_tokens", [True], [False]),
    ("spaces_between_special_tokens", [True, False], []),
    ("include_stop_str_in_output", [False], [True]),
    ("truncate_prompt_tokens", [None, -1], [5]),
    ("truncation_side", ["left"], []),
    ("truncation", ["disabled"], ["auto"]),
    ("prompt_logprobs", [None], [0, 1, -1]),
    ("logprob_token_ids", [None], [[5]]),
    ("echo", [False], [True]),
    ("add_special_tokens", [False], [True]),
    ("documents", [None, []], [[{"text": "x"}]]),
    ("chat_template", [None], ["{{ messages }}"]),
    ("mm_processor_kwargs", [{}], [{"a": 1}]),
    ("priority", [0], [1]),
    ("cache_salt", [None], ["x"]),
    ("kv_transfer_params", [None], [{"a": 1}]),
    ("vllm_xargs", [{}], [{"a": 1}]),
    ("thinking_token_budget", [None], [5]),
    ("include_reasoning", [True], [False]),
    ("parse_tool_calls", [True], [False]),
    ("verbosity", ["medium"], ["low"]),
    ("web_search_options", [{}], [{"a": 1}]),
    ("functions", [[]], [[{"name": "f"}]]),
    ("function_call", [None], ["auto"]),
    ("audio", [None], [{"voice": "a"}]),
    ("background", [False], [True]),
    ("conversation", [None], ["c"]),
    ("context", [[]], [[1, 2]]),
    ("template", [""], ["{{ .Prompt }}"]),
    ("num_ctx", [4096], []),
    ("num_gpu", [1], []),
    ("num_thread", [2], []),
    ("shift", [True, False], []),
    ("penalize_newline", [True, False], []),
    ("mcp_servers", [[]], [[{"url": "x"}]]),
    ("some_new_penalty", [0], [1]),
    ("user", ["me"], []),
    ("service_tier", ["auto", "flex"], []),
    ("prediction", [{"type": "content", "content": "x"}], []),
]


@pytest.mark.parametrize(("name", "neutral", "refused"), DECIDED, ids=[row[0] for row in DECIDED])
def test_each_field_asks_for_nothing_or_is_refused(name: str, neutral: list[Any], refused: list[Any]) -> None:
    for value in neutral:
        assert unsupported({name: value}) is None, value
    for value in refused:
        found = unsupported({name: value})
        assert found is not None and found[0] == name, value
        assert unsupported({name: value}, known={name}) is None


def test_a_window_of_the_penalty_is_refused_beside_a_penalty() -> None:
    for penalty in ("repeat_penalty", "repetition_penalty"):
        assert unsupported({penalty: 1.0, "repeat_last_n": 64}, known={penalty}) is None
        assert unsupported({penalty: 1.1, "repeat_last_n": -1}, known={penalty}) is None
        for window in (0, 64):
            found = unsupported({penalty: 1.1, "repeat_last_n": window}, known={penalty})
            assert found is not None and found[0] == "repeat_last_n"


def test_a_column_of_a_batch_may_be_called_like_a_field() -> None:
    row = {"id": "1", "prompt": "x", **dict.fromkeys(OF_REQUESTS, "a")}
    parsed = parse_line(json.dumps(row).encode(), 1)
    assert parsed is not None and set(parsed.ignored) == OF_REQUESTS


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, models_dir: Path) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("fields")
    coe = Coe(folder, folder / "models")
    copy_model(models_dir / MODEL, coe.models / MODEL)
    tiny = write_tiny_model(coe.models / "tiny", seed=3)
    (tiny / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{% endfor %}{{ mood | default('') }}{% if enable_thinking is defined and not enable_thinking %}off{% endif %}"
        "{{ reasoning_effort | default('') }}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    with serving(coe) as it:
        yield it
    coe.end_all()


def ask(served: Served, path: str, model: str = "tiny", **fields: Any) -> Response:
    return served.request("POST", path, {"model": model, **ASKED[path], **fields})


REFUSED = [
    *((path, {"min_p": 0.1}, "min_p") for path in ASKED if path not in ("/v1/embeddings", "/api/embed")),
    *((path, {"skip_special_tokens": False}, "skip_special_tokens") for path in (CHAT, TEXT, NATIVE, RESPONSES, MESSAGES, OLLAMA)),
    *((path, {"timings_per_token": True}, "timings_per_token") for path in (RESPONSES, MESSAGES, OLLAMA, RAW)),
    *((path, {"return_progress": True}, "return_progress") for path in (RESPONSES, MESSAGES, OLLAMA)),
    *((path, {"dimensions": 5}, "dimensions") for path in ("/v1/embeddings", "/api/embed")),
    ("/v1/embeddings", {"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
    (TEXT, {"add_special_tokens": False}, "add_special_tokens"),
    (TEXT, {"reasoning_effort": "low"}, "reasoning_effort"),
    (CHAT, {"chat_template_kwargs": {"messages": "x"}}, "chat_template_kwargs"),
    (CHAT, {"chat_template_kwargs": {"bos_token": "x"}}, "chat_template_kwargs"),
    (CHAT, {"chat_template_kwargs": {"a": ["x"]}}, "chat_template_kwargs"),
    (CHAT, {"chat_template_kwargs": {"a": "<|im_end|>"}}, "chat_template_kwargs"),
    (CHAT, {"chat_template_kwargs": {"a": 2**70}}, "chat_template_kwargs"),
    (CHAT, {"chat_template_kwargs": {"A b": 1}}, "chat_template_kwargs"),
    (CHAT, {"reasoning_effort": "very"}, "reasoning_effort"),
    (CHAT, {"continue_final_message": True}, "continue_final_message"),
    (CHAT, {"messages": BEGUN[1:], "continue_final_message": True}, "continue_final_message"),
    (CHAT, {"messages": BEGUN, "continue_final_message": True, "add_generation_prompt": True}, "add_generation_prompt"),
    (CHAT, {"stop_token_ids": [-1]}, "stop_token_ids.0"),
    (CHAT, {"stop_token_ids": [True]}, "stop_token_ids.0"),
    ("/detokenize", {"tokens": [True]}, "tokens.0"),
    (CHAT, {"top_k": -2}, "top_k"),
    (RESPONSES, {"include": ["message.output_text.logprobs"]}, "include.0"),
    (RESPONSES, {"background": True}, "background"),
    (RESPONSES, {"reasoning": {"effort": "very"}}, "reasoning.effort"),
    (RESPONSES, {"text": {"verbosity": "low"}}, "text.verbosity"),
    (MESSAGES, {"output_config": {"format": {"type": "sound"}}}, "output_config.format.type"),
    (MESSAGES, {"mcp_servers": [{"type": "url", "url": "http://a"}]}, "mcp_servers"),
    (OLLAMA, {"options": {"mirostat": 2}}, "mirostat"),
    (OLLAMA, {"messages": [*HI, {"role": "assistant", "tool_calls": 5}]}, "messages.1.tool_calls"),
    (OLLAMA, {"messages": [*HI, {"role": "assistant", "tool_calls": [5]}]}, "messages.1.tool_calls.0"),
    (MESSAGES, {"thinking": {"type": 5}}, "thinking.type"),
    (MESSAGES, {"messages": []}, "messages"),
    (MESSAGES, {"tool_choice": {"type": "none of them"}}, "`tool_choice.type`"),
    (MESSAGES, {"output_config": {"effort": "very"}}, "output_config"),
    (TEXT, {"prompt": ["a", " "]}, "prompt"),
    (OLLAMA, {"options": {"num_predict": "many"}}, "num_predict"),
    (OLLAMA, {"think": "very"}, "think"),
    (OLLAMA, {"options": {"repeat_penalty": 1.1, "repeat_last_n": 64}}, "repeat_last_n"),
    (RAW, {"template": "{{ .Prompt }}"}, "template"),
    (RAW, {"context": [1, 2]}, "context"),
    (RAW, {"images": ["AAAA"]}, "images"),
    (RAW, {"images": ["AAAA"], "raw": True}, "images"),
    (RAW, {"suffix": "x"}, "filling in the middle"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "fields", "name"), REFUSED, ids=[f"{path} {name} ({n})" for n, (path, _, name) in enumerate(REFUSED)])  # fmt: skip
def test_a_field_is_refused_by_its_name_in_every_api(
    served: Served, path: str, fields: dict[str, Any], name: str
) -> None:
    answer = ask(served, path, **fields)
    assert answer.status == 400 and name in answer.body.decode(), answer.body
    if path.startswith("/v1/") and path != MESSAGES:
        assert answer.error["param"] == name


TAKEN = [
    (CHAT, {"top_k": -1, "temperature": 1.0}),
    (CHAT, {"top_k": 0}),
    (CHAT, {"messages": BEGUN, "stop_token_ids": []}),
    (CHAT, {"reasoning_format": "auto", "chat_template_kwargs": {"custom": True}}),
    (NATIVE, {"seed": -1, "repeat_last_n": 64, "repeat_penalty": 1.0, "samplers": []}),
    (TEXT, {"add_special_tokens": True}),
    (RESPONSES, {"reasoning": {"effort": "low", "summary": "auto"}, "include": ["reasoning.encrypted_content"]}),
    (RESPONSES, {"text": {"verbosity": "medium"}}),
    (MESSAGES, {"thinking": {"type": "disabled"}}),
    (OLLAMA, {"think": True, "truncate": True, "shift": True, "options": {"num_ctx": 4096, "num_predict": -1, "seed": -1, "num_gpu": 1, "stop": ["x"]}, "keep_alive": "5m"}),
    (OLLAMA, {"think": "low"}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "fields"), TAKEN, ids=[str(number) for number in range(len(TAKEN))])
def test_what_asks_for_nothing_here_is_taken(served: Served, path: str, fields: dict[str, Any]) -> None:
    answer = ask(served, path, **fields)
    assert answer.status == 200, answer.body


def prompt_of(served: Served, messages: list[dict[str, str]] = HI, **fields: Any) -> str:
    """The text of a prompt."""
    answer = served.request("POST", "/apply-template", {"model": "tiny", "messages": [NO_SYSTEM, *messages], **fields})
    assert answer.status == 200, answer.body
    return str(answer.json["prompt"])


def test_the_chat_template_is_told_what_it_knows(served: Served) -> None:
    assert prompt_of(served) == "user:Hi\nassistant:"
    assert prompt_of(served, chat_template_kwargs={"mood": "glad"}) == "user:Hi\ngladassistant:"
    assert prompt_of(served, reasoning_effort="low") == "user:Hi\nlowassistant:"
    assert prompt_of(served, reasoning_effort="none") == "user:Hi\noffassistant:"
    assert prompt_of(served, add_generation_prompt=False) == "user:Hi\n"
    assert prompt_of(served, BEGUN, continue_final_message=True) == f"user:Hi\nassistant:{BEGUN[1]['content']}"


def test_a_parameter_of_the_address_has_its_name(served: Served) -> None:
    answer = served.request("GET", "/slots?fail_on_no_slot=maybe")
    assert (answer.status, answer.error["param"]) == (400, "fail_on_no_slot")


def tokens_of(answer: Response) -> int:
    usage = answer.json["usage"]
    return int(usage["input_tokens"] + usage.get("cache_read_input_tokens", 0))


def test_the_other_apis_tell_it_too(served: Served) -> None:
    plain = ask(served, MESSAGES)
    off = ask(served, MESSAGES, thinking={"type": "disabled"})
    assert tokens_of(off) == tokens_of(plain) + len("off")
    assert tokens_of(ask(served, RESPONSES, reasoning={"effort": "low"})) == tokens_of(plain) + len("low")
    counts = [ask(served, OLLAMA, think=think).json["prompt_eval_count"] for think in (None, False, True, "low")]
    assert counts == [counts[0], counts[0] + 3, counts[0], counts[0] + 3]


def test_a_final_message_is_gone_on_with(served: Served) -> None:
    greedy: dict[str, Any] = {"temperature": 0, "max_tokens": 8}
    answer = ask(served, CHAT, MODEL, messages=BEGUN, continue_final_message=True, **greedy)
    assert "Paris" in said(answer)
    of_anthropic = ask(served, MESSAGES, MODEL, messages=BEGUN, **greedy)  # as Anthropic does without being told to
    assert said(of_anthropic) == said(answer)


def test_an_answer_goes_on_past_its_end_and_ends_at_a_token(served: Served) -> None:
    question = [{"role": "user", "content": "The capital of France is"}]
    fields: dict[str, Any] = {"messages": question, "temperature": 0, "max_tokens": 40}
    usual = ask(served, CHAT, MODEL, **fields)
    assert usual.json["usage"]["completion_tokens"] < 40
    on = ask(served, CHAT, MODEL, **fields, ignore_eos=True)
    assert (on.json["usage"]["completion_tokens"], on.json["choices"][0]["finish_reason"]) == (40, "length")
    second = served.request("POST", "/tokenize", {"model": MODEL, "content": said(usual)}).json["tokens"][1]
    ended = ask(served, CHAT, MODEL, **fields, stop_token_ids=[second])
    assert said(usual).startswith(said(ended)) and ended.json["usage"]["completion_tokens"] == 2
    assert ended.json["choices"][0]["finish_reason"] == "stop"
    later = ask(served, CHAT, MODEL, **fields, stop_token_ids=[second], min_tokens=3)
    assert later.json["usage"]["completion_tokens"] > 2


def test_timings_progress_and_usage_come_with_each_chunk(served: Served) -> None:
    for path in (CHAT, TEXT, NATIVE):
        stream: dict[str, Any] = {"stream": True, "timings_per_token": True, "return_progress": True}
        found = events(ask(served, path, **stream, ignore_eos=True))
        counts = [event["timings"]["predicted_n"] for event in found if "timings" in event]
        assert counts == sorted(counts) and counts[-1] == 4, found
        progress = next(event["prompt_progress"] for event in found if "prompt_progress" in event)
        assert progress["total"] == progress["processed"] > 0
    whole = ask(served, CHAT, timings_per_token=True).json
    assert whole["timings"]["predicted_per_second"] > 0
    options = {"include_usage": True, "continuous_usage_stats": True}
    found = events(ask(served, CHAT, stream=True, stream_options=options, ignore_eos=True))
    counts = [event["usage"]["completion_tokens"] for event in found if event.get("usage")]
    assert counts == sorted(counts) and counts[-1] == 4 and len(counts) > 1


def test_a_stop_string_is_named(served: Served) -> None:
    question = [{"role": "user", "content": "The capital of France is"}]
    native = ask(served, NATIVE, MODEL, prompt="The capital of France is", temperature=0, n_predict=20, stop=["aris"])
    assert (native.json["stop_type"], native.json["stopping_word"]) == ("word", "aris")
    fields: dict[str, Any] = {
        "messages": question,
        "temperature": 0,
        "max_tokens": 20,
        "stop_sequences": ["nope", "aris"],
    }
    answer = ask(served, MESSAGES, MODEL, **fields).json
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", "aris")
    (last,) = (e for e in events(ask(served, MESSAGES, MODEL, **fields, stream=True)) if e["type"] == "message_delta")
    assert last["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": "aris"}


def test_a_raw_prompt_of_ollamas_has_no_limit_of_openais(served: Served) -> None:
    answer = ask(served, RAW, raw=True, options={"ignore_eos": True, "num_predict": -1})
    assert answer.json["eval_count"] > 16


def test_a_structured_message_of_anthropics(served: Served) -> None:
    form = {"type": "json_schema", "schema": {"const": "foo"}}
    for fields in ({"output_config": {"format": form}}, {"output_format": form}):
        assert said(ask(served, MESSAGES, max_tokens=20, **fields)) == '"foo"'


def test_a_random_seed_is_none(served: Served) -> None:
    def written(path: str, fields: dict[str, Any]) -> set[str]:
        return {ask(served, path, **fields).json.get("content") or "" for _ in range(3)}

    hot: dict[str, Any] = {"temperature": 2.0, "n_predict": 16, "ignore_eos": True}
    assert len(written(NATIVE, {**hot, "seed": -1})) > 1
    assert len(written(NATIVE, {**hot, "seed": 7})) == 1
