"""The supervisor fails while it writes one answer of the drafts, with a real worker: what the user is left with."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from conftest import MODEL, REPOSITORY, Coe, Result, one_line
from operating_system import SYSTEM_ENDED_IT

QUESTION = "Name the days of the week and say what each is good for."
ASK = (
    "ask", "-m", MODEL, "--experts", "math_expert,sql_query", "--max-tokens", "40", "--temperature", "0", QUESTION,
)  # fmt: skip
EXPERTS_READ_LESS = 120
"""Tokens: the experts' prompts have fewer, and the supervisor's, with the drafts in it, has more."""


def failing(coe: Coe, kind: str, times: int, *arguments: str, tokens: int = 12) -> Result:
    """A run in which so many workers fail in mid-synthesis."""
    fault = {"kind": kind, "times": times, "prompt_tokens": EXPERTS_READ_LESS, "tokens": tokens}
    path = os.pathsep.join([str(REPOSITORY / "tests" / "failing_oga"), coe.environment["PYTHONPATH"]])
    coe.environment |= {"PYTHONPATH": path, "OGA_FAULT": json.dumps(fault | {"folder": str(coe.folder)})}
    result = coe.run(*ASK, *arguments)
    assert len(list(coe.folder.glob("fault-*"))) == times, result.stderr
    return result


@pytest.fixture(scope="module")
def undisturbed(shared_coe: Coe) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(shared_coe.run(*ASK, "--format", "json").check().stdout)
    assert list(value)[-2:] == ["drafts", "error"] and value["error"] is None
    assert all(draft["usage"]["prompt_tokens"] < EXPERTS_READ_LESS for draft in value["drafts"])
    assert (
        value["usage"]["prompt_tokens"] - sum(d["usage"]["prompt_tokens"] for d in value["drafts"]) > EXPERTS_READ_LESS
    )
    return value


def headings(answer: dict[str, Any]) -> str:
    return "\n\n".join(f"## {draft['expert']}\n\n{draft['answer']}" for draft in answer["drafts"])


@pytest.mark.long
def test_a_worker_killed_in_mid_answer_leaves_what_it_wrote_and_the_drafts(
    coe: Coe, undisturbed: dict[str, Any]
) -> None:
    result = failing(coe, "kill", 1)
    assert result.code == 7
    begun, _, rest = result.stdout.partition("\n\n## ")
    assert begun and undisturbed["answer"].startswith(begun.strip("\n"))
    assert f"## {rest}" == headings(undisturbed) + "\n"
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith("coe: general_reasoner made no answer of the drafts, so they are given as they are: ")
    assert SYSTEM_ENDED_IT in last
    assert undisturbed["drafts"][0]["answer"] in coe.run("logs", "show").check().stdout


@pytest.mark.long
def test_nothing_written_yet_leaves_the_drafts_alone(coe: Coe, undisturbed: dict[str, Any]) -> None:
    """The first loss goes unseen; the second one is the end."""
    result = failing(coe, "kill", 2, "--format", "quiet", tokens=0)
    assert (result.code, result.stdout) == (7, headings(undisturbed) + "\n")
    assert "general_reasoner made no answer" in one_line(result.stderr)


@pytest.mark.long
def test_json_that_nobody_reads_along_starts_again_unseen(coe: Coe, undisturbed: dict[str, Any]) -> None:
    result = failing(coe, "kill", 1, "--format", "json").check()
    assert json.loads(result.stdout)["answer"] == undisturbed["answer"]
    assert result.stderr == ""


@pytest.mark.long
def test_out_of_memory_in_json_has_drafts_and_error(coe: Coe, undisturbed: dict[str, Any]) -> None:
    result = failing(coe, "oom", 2, "--format", "json")
    assert result.code == 6
    joint = json.loads(result.stdout)
    assert list(joint) == list(undisturbed)
    assert joint["answer"] == headings(undisturbed)
    assert [draft["answer"] for draft in joint["drafts"]] == [draft["answer"] for draft in undisturbed["drafts"]]
    assert list(joint["error"]) == ["code", "message", "hint"]
    assert joint["error"]["code"] == "out_of_memory" and "Failed to allocate" in joint["error"]["message"]
    assert joint["warnings"] == [f"no synthesis: {joint['error']['message']}"]
    error = json.loads(one_line(result.stderr))["error"]
    assert error["code"] == "out_of_memory" and joint["error"]["message"] in error["message"] and error["hint"]


@pytest.mark.long
def test_json_lines_end_with_the_drafts_and_the_error(coe: Coe, undisturbed: dict[str, Any]) -> None:
    result = failing(coe, "oom", 1, "--format", "jsonl")
    assert result.code == 6
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["type"] for line in lines[:2]] == ["draft", "draft"]
    assert (lines[-1]["type"], lines[-1]["answer"]) == ("answer", headings(undisturbed))
    assert lines[-1]["error"]["code"] == "out_of_memory"
    assert json.loads(one_line(result.stderr))["error"]["code"] == "out_of_memory"


@pytest.mark.long
def test_a_prompt_too_long_even_with_shortened_drafts(coe: Coe, tmp_path: Path) -> None:
    profiles = tmp_path / "profiles.yaml"
    profiles.write_text(
        "profiles:\n  tiny: {vram_budget_mb: 4000, max_concurrent_slots: 2, context_length: 112, provider: cpu}\n"
    )
    result = coe.run(*ASK, "-p", "tiny", "--profiles", str(profiles), "--format", "json")
    assert result.code == 2
    joint = json.loads(result.stdout)
    assert all(draft["answer"] and draft["error"] is None for draft in joint["drafts"])
    assert joint["error"]["code"] == "prompt_too_long"
    assert json.loads(one_line(result.stderr))["error"]["code"] == "prompt_too_long"


@pytest.mark.long
def test_the_code_block_asked_for_is_not_what_failed(coe: Coe) -> None:
    result = failing(coe, "kill", 2, "-x")  # the first one starts again unseen, since only the block is shown
    assert (result.code, result.stdout) == (7, "")
    assert "general_reasoner made no answer" in result.stderr.splitlines()[-1]
