"""`coe ask` with several experts and the real embedded model: drafts, one answer, and what a failure leaves."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from conftest import ENDLESS, MODEL, Coe, copy_model, eventually, one_line
from serving import Served

QUESTION = "What is two plus two?"
PAIR = ("ask", "-m", MODEL, "--experts", "math_expert,sql_query", "--max-tokens", "6")
BROKEN = """
models:
  broken:
    provider: cpu
    context_length: 8192
    weights_mb: 100
    shape: {num_hidden_layers: 30, hidden_size: 576, num_attention_heads: 9, num_key_value_heads: 3, head_size: 64, vocab_size: 49152}
experts:
  cracked: {model: broken, system_prompt: "Answer.", description: "Nothing that works"}
"""


@pytest.fixture(scope="module")
def together(shared_coe: Coe) -> dict[str, Any]:
    result = shared_coe.run(*PAIR, "--format", "json", QUESTION).check()
    assert result.stderr == ""
    value: dict[str, Any] = json.loads(result.stdout)
    return value


@pytest.mark.long
def test_json_has_every_draft_with_expert_model_and_timing(together: dict[str, Any]) -> None:
    assert list(together)[-3:] == ["warnings", "drafts", "error"]
    assert together["expert"] == "general_reasoner"
    assert [draft["expert"] for draft in together["drafts"]] == ["math_expert", "sql_query"]
    for draft in together["drafts"]:
        assert list(draft) == [
            "expert", "model", "provider", "answer", "thinking", "finish_reason", "usage", "timing", "error", "warnings",
        ]  # fmt: skip
        assert (draft["model"], draft["provider"], draft["error"]) == (MODEL, "cpu", None)
        assert draft["answer"] and draft["timing"]["total_s"] > 0
        assert 0 < draft["usage"]["completion_tokens"] <= 6
    spent = sum(draft["usage"]["completion_tokens"] for draft in together["drafts"])
    assert spent < together["usage"]["completion_tokens"] <= spent + 6


def test_the_supervisor_writes_from_the_drafts(answered: Coe, together: dict[str, Any]) -> None:
    """Its prompt holds question and drafts: it is longer than the experts' prompts together."""
    experts = sum(draft["usage"]["prompt_tokens"] for draft in together["drafts"])
    assert together["usage"]["prompt_tokens"] - experts > 60
    refined = json.loads(
        answered.run(
            "ask", "-m", MODEL, "-e", "math_expert", "--refine", "--max-tokens", "6", "--format", "json", QUESTION
        )
        .check()
        .stdout
    )
    assert (refined["expert"], [draft["expert"] for draft in refined["drafts"]]) == (
        "general_reasoner",
        ["math_expert"],
    )


def test_in_a_pipe_the_answer_is_alone_on_stdout(answered: Coe, together: dict[str, Any]) -> None:
    result = answered.run(*PAIR, QUESTION).check()
    assert result.stdout == together["answer"] + "\n"
    assert "\x1b" not in result.stdout + result.stderr
    lines = sorted(result.stderr.splitlines())
    assert [line.split(" tokens")[0].rsplit(" ", 1)[0] for line in lines] == [
        f"coe: math_expert ({MODEL}):",
        f"coe: sql_query ({MODEL}):",
    ]


def test_without_synthesis_the_drafts_stand_under_headings(answered: Coe, together: dict[str, Any]) -> None:
    result = answered.run(*PAIR, "--no-synthesis", "--format", "quiet", QUESTION).check()
    first, second = (draft["answer"] for draft in together["drafts"])
    assert result.stdout == f"## math_expert\n\n{first}\n\n## sql_query\n\n{second}\n"
    assert result.stderr == ""


def test_json_lines_have_each_draft_and_then_the_answer(answered: Coe, together: dict[str, Any]) -> None:
    result = answered.run(*PAIR, "--format", "jsonl", QUESTION).check()
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    kinds = [line["type"] for line in lines]
    assert kinds[:2] == ["draft", "draft"] and kinds[-1] == "answer" and set(kinds[2:-1]) == {"token"}
    assert sorted(line["expert"] for line in lines[:2]) == ["math_expert", "sql_query"]
    assert "".join(line["text"] for line in lines[2:-1]) == lines[-1]["answer"] == together["answer"]
    assert [draft["answer"] for draft in lines[-1]["drafts"]] == [draft["answer"] for draft in together["drafts"]]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("-e", "math_expert", "--experts", "2"), "-e names one expert and --experts several"),
        (("--refine", "--no-synthesis"), "--no-synthesis forbids"),
        (("--refine", "--experts", "2"), "--refine takes one expert"),
        (("--experts", "math_expret"), "unknown expert `math_expret`. Did you mean `math_expert`"),
        (("--experts", "99"), "there are 10 experts"),
    ],
)
def test_what_does_not_go_together_is_said(coe: Coe, arguments: tuple[str, ...], says: str) -> None:
    result = coe.run("ask", *arguments, QUESTION)
    assert (result.code, result.stdout) == (2, "")
    assert says in one_line(result.stderr)


@pytest.fixture
def cracked(bare_coe: Coe, copied_model: Path) -> Coe:
    """An expert whose model's weights are cut off."""
    copy_model(copied_model, bare_coe.models / "broken")
    weights = bare_coe.models / "broken" / "model.onnx.data"
    weights.unlink()
    weights.write_bytes(b"short")
    (bare_coe.config / "experts.yaml").write_text(BROKEN)
    return bare_coe


@pytest.mark.long
def test_one_that_fails_is_said_and_the_rest_goes_on(cracked: Coe) -> None:
    base = ("ask", "--experts", "cracked,math_expert", "--max-tokens", "4")
    result = cracked.run(*base, "--format", "json", QUESTION).check()
    joint = json.loads(result.stdout)
    bad, good = joint["drafts"]
    assert bad["expert"] == "cracked" and bad["error"]["code"] == "model_damaged" and bad["usage"] is None
    assert good["error"] is None and good["answer"]
    assert joint["answer"]
    assert any(warning.startswith("cracked failed: ") for warning in joint["warnings"])
    human = cracked.run(*base, "--no-synthesis", QUESTION).check()
    assert "cracked (broken) failed: " in human.stderr and "going on without it" in human.stderr
    assert human.stdout.startswith("## cracked\n\n(")


def test_if_all_fail_the_reason_is_the_first_ones(cracked: Coe) -> None:
    result = cracked.run("ask", "--experts", "cracked", "--refine", "--format", "json", QUESTION)
    assert (result.code, result.stdout) == (4, "")
    assert json.loads(one_line(result.stderr))["error"]["code"] == "model_damaged"


def test_the_running_college_runs_them_side_by_side(served: Served, answered: Coe, together: dict[str, Any]) -> None:
    joint = json.loads(answered.run(*PAIR, "--format", "json", QUESTION).check().stdout)
    assert [draft["answer"] for draft in joint["drafts"]] == [draft["answer"] for draft in together["drafts"]]
    assert joint["answer"] == together["answer"]
    (line,) = served.status()["models"]
    assert (line["name"], line["running"], line["waiting"]) == (MODEL, 0, 0)


def test_an_interrupt_cancels_them_all_in_the_college(served: Served, answered: Coe) -> None:
    process = answered.start(
        "ask", "-m", MODEL, "--experts", "math_expert,medical_expert", "--temperature", "0", ENDLESS
    )
    eventually(lambda: any(line["running"] == 2 for line in served.snapshot()["models"]))
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=200) == 130
    eventually(lambda: all(line["running"] == 0 for line in served.snapshot()["models"]))


@pytest.mark.slow
def test_together_answers_are_kept_under_all_names(coe: Coe) -> None:
    coe.run(*PAIR, QUESTION).check()
    assert "math_expert+sql_query" in coe.run("logs", "list").check().stdout


@pytest.mark.slow
def test_long_drafts_are_cut_to_the_supervisors_context(coe: Coe) -> None:
    """A slot of 256 tokens holds neither draft whole beside the question and the answer."""
    profiles = coe.folder / "profiles.yaml"
    profiles.write_text(
        "profiles:\n  tiny: {vram_budget_mb: 4000, max_concurrent_slots: 2, context_length: 256, provider: cpu}\n"
    )
    result = coe.run(
        "ask", "-m", MODEL, "--experts", "math_expert,general_reasoner", "-p", "tiny", "--profiles", str(profiles),
        "--max-tokens", "120", "--format", "json", "Tell me a long story about the sea.",
    ).check()  # fmt: skip
    joint = json.loads(result.stdout)
    assert joint["warnings"] == []
    assert joint["answer"]
    assert all(draft["error"] is None for draft in joint["drafts"])
