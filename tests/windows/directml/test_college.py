"""coe on DirectML, as a user types it: two small models of its own recipe, on a college's two experts."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[3]
sys.path.insert(0, str(CHECKOUT / "tests"))
from two_experts import LONG, AnswersOnACard, Coe  # noqa: E402

MODELS = CHECKOUT / "models"
BUDGET_MB = 2800
"""800 beside the fixed part: room for one of the two models with a slot of 2048 tokens, which takes some 520 MB."""


@pytest.fixture(scope="module")
def coe(tmp_path_factory: pytest.TempPathFactory) -> Coe:
    return Coe(tmp_path_factory.mktemp("coe"), "dml", MODELS, BUDGET_MB)


@pytest.fixture(scope="module")
def served(coe: Coe) -> Iterator[Coe]:
    coe("serve", "--keep-alive", "20m")
    yield coe
    coe("stop")


def test_a_model_of_the_recipe_computes_what_the_cpu_does(coe: Coe) -> None:
    found = {item["check"]: item for item in coe.json("models", "verify", "tiny-a")["findings"]}
    assert {check: item["level"] for check, item in found.items() if item["level"] != "ok"} == {}
    assert "20 of 20 prompts" in found["agreement"]["message"]


def test_a_model_with_fp16_norms_is_seen_to_compute_something_else(coe: Coe) -> None:
    from model_store.tiny_dml import write_tiny_dml

    write_tiny_dml(MODELS / "wrong", embedding_scale=600.0)
    found = {item["check"]: item for item in coe.json("models", "verify", "wrong", code=4)["findings"]}
    assert (found["operators"]["level"], found["agreement"]["level"]) == ("warning", "error")


def test_the_plan_is_what_directml_asks_for(coe: Coe) -> None:
    """Within 5 %, and half a megabyte for what is rounded up to 64 KiB."""
    module = "tests.windows.directml.measure_memory"
    said = coe.python("-m", module, str(MODELS / "tiny-a"), "2048:128", "2048:512").splitlines()
    rows = [json.loads(line) for line in said if line.startswith("{")]
    assert len(rows) == 5
    del rows[3]  # the second generator's cache comes from the pool
    for row in rows:
        assert row["asked_mb"] == pytest.approx(row["planned_mb"], rel=0.05, abs=0.5), row


def test_doctor_and_the_probe_see_the_card(coe: Coe) -> None:
    found = coe.json("doctor")["findings"]
    told = [item["message"] for item in found if item["check"] in ("adapters", "models", "directml", "direct3d")]
    assert any("llvmpipe" in message and "COE_DEVICE=luid" in message for message in told)
    made = re.compile(
        r"a Direct3D 12 device can be made, feature level 1\d_\d, and a DirectML device, feature level \d"
    )
    assert any(made.search(message) for message in told)
    assert any("tiny-a runs on dml" in message for message in told)
    assert any("DirectML.dll" in message for message in told)


def test_asked_without_a_college(coe: Coe) -> None:
    coe.ask("hi", "--no-serve", "-e", "first")


def test_a_models_own_pieces_would_be_answered_wrongly_and_are_not_used(served: Coe) -> None:
    """OGA splits a prompt by search.chunk_size there, and attention over a later piece does not see the earlier ones."""
    shutil.copytree(MODELS / "tiny-a", MODELS / "pieces")
    (MODELS / "pieces" / "coe_manifest.json").unlink()
    path = MODELS / "pieces" / "genai_config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["search"]["chunk_size"] = 64
    path.write_text(json.dumps(content), encoding="utf-8")
    question = "tell " * 40
    assert served.ask(question, "-m", "pieces")["answer"] == served.ask(question, "-m", "tiny-a")["answer"]


def test_batch(coe: Coe, tmp_path: Path) -> None:
    rows = [
        {"prompt": "hi", "expert": "first"},
        {"prompt": LONG, "expert": "second"},
        {"prompt": "ho", "expert": "first"},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    coe("batch", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"), "--max-tokens", "4")
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(answers) == 3
    assert all(answer.get("error") is None and answer.get("answer") is not None for answer in answers)


class TestCollege(AnswersOnACard):
    """The same on every card."""
