"""What ends an answer: the union of what a model's files say, through every way in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MODEL, Coe, copy_model
from serving import Served, serving
from ways import say

from coe_cli.core.answers.end_of_turn import end_texts, end_tokens

QUESTION, ANSWER = "What is the capital of France?", "The capital of France is Paris."
CONTROL = {"<eos>": 7, "<|im_end|>": 2, "<|im_start|>": 1, "<|endoftext|>": 0}
TEMPLATE = "{{ '<|im_start|>' }}{{ message }}<|im_end|>"

UNIONS: list[tuple[Any, Any, str, str, tuple[int, ...], list[int]]] = [
    (2, None, "<|im_end|>", TEMPLATE, (2,), []),
    (0, None, "<|im_end|>", TEMPLATE, (0, 2), [2]),
    ([0, 7], None, "", TEMPLATE, (0, 7, 2), [2]),
    (0, [5, 2], "", "", (0, 5, 2), [5, 2]),
    (0, 5, "<eos>", TEMPLATE, (0, 5, 7, 2), [5, 7, 2]),
    (None, None, "<eos>", "", (7,), [7]),
    (None, None, "", "", (), []),
    (0, "x", "no token", "{{ messages }}", (0,), []),
    (0, [10_000, True, -1], "", "", (0,), []),
]


@pytest.mark.parametrize(("configured", "generation", "eos", "template", "ids", "missing"), UNIONS)
def test_the_union(
    configured: Any, generation: Any, eos: str, template: str, ids: tuple[int, ...], missing: list[int]
) -> None:
    ends = end_tokens(configured, generation, eos, template, CONTROL, vocab_size=100)
    assert (ends.ids, list(ends.missing)) == (ids, missing)
    assert bool(ends.note(configured)) == bool(missing)


def test_a_message_of_a_turn_may_end_before_the_turn() -> None:
    assert end_texts(["<|end|>", "<|user|>"]) == {"<|end|>"}
    assert end_texts(["<|end|>", "<|return|>", "<|channel|>"]) == {"<|return|>"}


def edit(folder: Path, **model: Any) -> None:
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"] |= model
    (folder / "coe_manifest.json").unlink(missing_ok=True)
    (folder / "genai_config.json").unlink()
    (folder / "genai_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def home(home: Coe, models_dir: Path) -> Coe:
    """The embedded model with a configuration that knows a wrong end only."""
    edit(copy_model(models_dir / MODEL, home.models / MODEL), eos_token_id=0)
    return home


@pytest.fixture(scope="module")
def served(home: Coe) -> Iterator[Served]:
    with serving(home) as it:
        yield it


@pytest.mark.long
@pytest.mark.parametrize(
    "way", ["ask", "/v1", "/v1/messages", "/api/chat", "batch", "chat", "Client", "/v1/responses", "/api/generate"]
)
def test_a_wrong_end_in_the_configuration_is_made_good(way: str, served: Served) -> None:
    said = say(way, served, QUESTION, model=MODEL, temperature=0, max_tokens=64)
    assert said.text == ANSWER and said.finish_reason in ("stop", "")


@pytest.mark.long
def test_verify_and_pull_say_so(coe: Coe, home: Coe, tmp_path: Path) -> None:
    said = home.run("models", "verify", MODEL, "--no-run", "--format", "json").check()
    (found,) = (f for f in json.loads(said.stdout)["findings"] if f["check"] == "end of turn")
    assert found["level"] == "warning" and "at token 0," in found["message"] and "2 (" in found["message"]
    good = json.loads(coe.run("models", "verify", MODEL, "--no-run", "--format", "json").check().stdout)
    assert next(f for f in good["findings"] if f["check"] == "end of turn")["level"] == "ok"
    shutil.copytree(home.models / MODEL, tmp_path / "wrong-end")
    uri = (tmp_path / "wrong-end").as_uri().replace("file://", "file:")
    pulled = home.run("models", "pull", uri, "--as-is").check()
    assert "ends an answer at token 0" in pulled.stderr
