"""coe on WebGPU, as a user types it: two small models of its own recipe, on a college's two experts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from two_experts import CHECKOUT, LONG, TIMEOUT_S, AnswersOnACard, Coe

MODELS = Path(os.environ["COE_WEBGPU_MODELS"])


@pytest.fixture(scope="module")
def coe(tmp_path_factory: pytest.TempPathFactory) -> Coe:
    return Coe(tmp_path_factory.mktemp("coe"), "webgpu", MODELS, budget_mb=2130)


@pytest.fixture(scope="module")
def served(coe: Coe) -> Iterator[Coe]:
    coe("serve", "--keep-alive", "20m")
    yield coe
    coe("stop")


def greedy(provider: str, **environment: str) -> dict[str, list[tuple[int, float]]]:
    done = subprocess.run(
        [sys.executable, "tests/webgpu/greedy.py", str(MODELS / "tiny-a"), provider],
        cwd=CHECKOUT,
        env={**os.environ, **environment},
        capture_output=True,
        timeout=TIMEOUT_S,
        check=True,
    )
    found: dict[str, list[tuple[int, float]]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_its_tokens_are_the_cpus_until_two_choices_are_as_good_as_each_other() -> None:
    expected = greedy("cpu")
    for found in (greedy("webgpu"), greedy("webgpu", COE_GRAPH_CAPTURE="1")):
        same = 0
        for prompt, tokens in expected.items():
            parts = next((n for n, (a, b) in enumerate(zip(tokens, found[prompt], strict=True)) if a[0] != b[0]), None)
            same += parts is None
            as_good = (
                0.02 if len(prompt) < 32 else 0.4
            )  # longer ones are read less exactly on this card (docs/performance.md)
            assert parts is None or tokens[parts][1] < as_good, (prompt, parts, tokens[parts], found[prompt][parts])
        assert same >= len(expected) // 2


def test_doctor_lists_what_a_worker_can_be_pointed_at(coe: Coe, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = [item for item in coe.json("doctor")["findings"] if item["check"] == "webgpu"]
    assert found["level"] == "ok" and "llvmpipe" in found["message"] and "COE_DEVICE=pci:10005:0000" in found["message"]
    monkeypatch.setitem(coe.environment, "COE_DEVICE", "pci:10005:0000")
    coe.ask("hi", "--no-serve", "-e", "first")


def test_without_an_adapter_it_says_so(coe: Coe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(coe.environment, "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER", "0")
    (found,) = [item for item in coe.json("doctor", code=1)["findings"] if item["check"] == "webgpu"]
    assert found["level"] == "error"
    coe("ask", "--no-serve", "-e", "first", "hi", code=7)


def test_planned(coe: Coe) -> None:
    plan = coe.json("vram", "plan", "--experts", "first", "--provider", "webgpu")
    assert plan["provider"] == "webgpu" and plan["fits"]


def test_batch(coe: Coe, tmp_path: Path) -> None:
    rows = [
        {"prompt": "hi", "expert": "first"},
        {"prompt": LONG, "expert": "first"},
        {"prompt": "ho", "expert": "first"},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    coe("batch", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"), "--max-tokens", "4")
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [answer.get("error") for answer in answers] == [None] * 3


class TestCollege(AnswersOnACard):
    """The same on every card."""
