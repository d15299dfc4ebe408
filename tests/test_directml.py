"""The college, chat, batch and bench on what behaves as DirectML does: a generator takes tokens once."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, Coe
from model_store.tiny_model import write_tiny_model
from serving import serving

START_FAILS = (
    r"D:\a\_work\1\onnxruntime-genai\src\dml\dml_helpers.cpp(84)\onnxruntime-genai.dll!00007FFB2C1E4A7B: "
    "(caller: 00007FFB2C1E41F0) Exception(1) tid(1f4c) {code} The specified device interface is not supported."
)
LONG = "one two three four five six seven eight nine ten " * 20
"""Some 1,000 tokens of the tiny model: two pieces where prompts are read in pieces."""


@pytest.fixture
def dml(tmp_path: Path) -> Coe:
    """coe where DirectML is installed, with one model that was built for it and the same one for the CPU."""
    coe = Coe(tmp_path, tmp_path / "models")
    for name in ("gpu", "host"):
        write_tiny_model(tmp_path / "models" / name, context=2048)
    path = tmp_path / "models" / "gpu" / "genai_config.json"
    path.write_text(path.read_text().replace('"provider_options": []', '"provider_options": [{"dml": {}}]'))
    double = str(REPOSITORY / "tests" / "directml_oga")
    coe.environment["PYTHONPATH"] = os.pathsep.join([double, coe.environment["PYTHONPATH"]])
    coe.environment |= {"OGA_LOG": str(tmp_path / "oga.log"), "COE_PROFILE": "minimal"}
    coe.retry_soon()
    return coe


def logged(coe: Coe) -> list[str]:
    return (coe.folder / "oga.log").read_text().splitlines()


def ask(coe: Coe, model: str, question: str, *arguments: str) -> dict[str, Any]:
    result = coe.run(
        "ask", "-m", model, "--temperature", "0", "--max-tokens", "8", "--format", "json", *arguments, question
    )
    return json.loads(result.check().stdout)


def test_a_long_prompt_is_read_in_one_piece_and_answers_as_on_the_cpu(dml: Coe) -> None:
    answer = ask(dml, "gpu", LONG)
    assert answer["provider"] == "dml" and answer["usage"]["prompt_tokens"] > 900
    assert logged(dml)[-2:] == ["generator", f"prompt {answer['usage']['prompt_tokens']}"]
    assert ask(dml, "host", LONG)["answer"] == answer["answer"]


def test_a_models_own_pieces_are_not_used(dml: Coe) -> None:
    path = dml.folder / "models" / "gpu" / "genai_config.json"
    content = json.loads(path.read_text())
    content["search"]["chunk_size"] = 64
    path.write_text(json.dumps(content))
    answer = ask(dml, "gpu", LONG)
    assert logged(dml)[-1] == f"prompt {answer['usage']['prompt_tokens']}", "in one piece"


@pytest.mark.long
def test_every_question_of_a_college_answers_also_after_a_warm_up_and_in_parallel(dml: Coe) -> None:
    with serving(dml) as served:
        first = served.chat("Hello", model="gpu", max_tokens=8)
        texts = [served.chat("Hello", model="gpu", max_tokens=8) for _ in range(3)]
        longer = served.chat(LONG, model="gpu", max_tokens=8)
        other = served.chat("Hello", model="host", max_tokens=8)
        again = served.chat("Hello", model="gpu", max_tokens=8)
    assert [response.status for response in (first, *texts, longer, other, again)] == [200] * 7
    answers = {r.json["choices"][0]["message"]["content"] for r in (first, *texts, other, again)}
    assert len(answers) == 1
    prompts = [line for line in logged(dml) if line.startswith("prompt")]
    assert f"prompt {longer.json['usage']['prompt_tokens']}" in prompts, "in one piece"


def test_a_conversation(dml: Coe) -> None:
    result = dml.run("chat", "-m", "gpu", "--max-tokens", "8", stdin="Hello\nAnd now?\n")
    assert result.code == 0, result.stderr
    assert "failed" not in result.stderr
    assert sum(line.startswith("prompt") for line in logged(dml)) >= 2


def test_a_batch(dml: Coe) -> None:
    rows = [{"id": str(n), "model": "gpu", "prompt": LONG if n == 2 else f"Question {n}"} for n in range(4)]
    (dml.folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dml.run("batch", "in.jsonl", "-o", "out.jsonl", "--max-tokens", "8").check()
    answers = [json.loads(line) for line in (dml.folder / "out.jsonl").read_text().splitlines()]
    assert sorted(answer["id"] for answer in answers) == ["0", "1", "2", "3"]
    assert all(answer["usage"]["completion_tokens"] for answer in answers)


@pytest.mark.long
def test_a_prompt_that_takes_more_than_the_room_is_refused_on_every_way_in_and_says_how_many_tokens_fit(
    dml: Coe,
) -> None:
    """Memory grows with the square of a context here: 100 MB hold 1024 tokens of the 2048 that model and profile have."""
    narrow = "profiles: {narrow: {provider: dml, vram_budget_mb: 2100, max_concurrent_slots: 1, context_length: 2048}}"
    (dml.config / "hardware_profiles.yaml").write_text(narrow)
    dml.environment["COE_PROFILE"] = "narrow"
    too_long, half = LONG, LONG[: len(LONG) // 2]
    rows = [{"id": "long", "model": "gpu", "prompt": too_long}, {"id": "short", "model": "gpu", "prompt": "Hi"}]
    (dml.folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    use = f"""
from coe_cli import Client
from coe_cli.errors import CoeError
with Client("narrow", serve=False) as client:
    try:
        client.ask({too_long!r}, model="gpu")
    except CoeError as error:
        print(error.message, error.hint)
"""

    assert 500 < ask(dml, "gpu", half)["usage"]["prompt_tokens"] < 1024
    said = {
        "ask": dml.run("ask", "-m", "gpu", too_long).stderr,
        "chat": dml.run("chat", "-m", "gpu", stdin=f"{too_long}\n").stderr,
        "Client": dml.run(command=[sys.executable, "-c", use]).stdout,
    }
    dml.run("batch", "in.jsonl", "-o", "out.jsonl", "--max-tokens", "4")
    out = {row["id"]: row for row in map(json.loads, (dml.folder / "out.jsonl").read_text().splitlines())}
    assert out["short"]["answer"] is not None
    said["batch"] = json.dumps(out["long"])
    with serving(dml) as served:
        said["HTTP"] = json.dumps(served.chat(too_long, model="gpu", max_tokens=8).json)
        assert served.chat("Hi", model="gpu", max_tokens=4).status == 200
    for way, text in said.items():
        assert "the context is 1024 (DirectML reads a prompt whole" in " ".join(text.split()), (way, text)
        assert "Shorten the prompt to 1023 tokens" in " ".join(text.split()), (way, text)
    assert not [line for line in logged(dml) if line.startswith("prompt") and int(line.split()[1]) > 1023]


@pytest.mark.long
def test_a_benchmark(dml: Coe) -> None:
    result = dml.run(
        *("bench", "gpu", "--prompt-tokens", "16,600", "--gen-tokens", "4", "--depth", "0,64", "-r", "2", "--max-length", "1024"),
        *("--format", "jsonl"),
    )  # fmt: skip
    lines = [json.loads(line) for line in result.check().stdout.splitlines()]
    assert len([line for line in lines if line.get("prompt_tokens")]) == 4


@pytest.mark.parametrize(
    "code", ["887A0004", *(pytest.param(code, marks=pytest.mark.long) for code in ("887A0002", "887A0022", "887A002D"))]
)
def test_directml_that_cannot_start_is_not_a_damaged_model(dml: Coe, code: str) -> None:
    text = START_FAILS.format(code=code)
    result = dml.run("ask", "-m", "gpu", "Hello", OGA_START_FAILS=text)
    assert result.code == 7, result.stderr
    assert code in result.stderr and "-p embedded" in result.stderr
    for hidden in ("dml_helpers", "00007FFB", "pull", "damaged", "tid("):
        assert hidden not in result.stderr


@pytest.mark.long
def test_a_driver_that_computes_something_else_is_seen_at_the_first_run(dml: Coe) -> None:
    def agreement(code: int, **environment: Any) -> dict[str, Any]:
        result = dml.run("models", "verify", "gpu", "--format", "json", **environment)
        assert result.code == code, result.stderr
        return next(item for item in json.loads(result.stdout)["findings"] if item["check"] == "agreement")

    wrong = agreement(4, OGA_WRONG="1")
    assert wrong["level"] == "error" and "0 of 20 prompts" in wrong["message"]
    assert "driver" in wrong["fix"]
    right = agreement(0)
    assert right["level"] == "ok" and "20 of 20 prompts" in right["message"]
