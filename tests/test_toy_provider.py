"""The two files of docs/adding-a-provider.md in a copy of coe: models are imported for it, planned, examined, measured and served."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, Coe
from serving import serving
from test_providers import files_of_the_page
from windows.directml.make_models import write_checkpoint

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the toy is a card of Linux")


class Toy(Coe):
    """coe with one provider more, each command in a process of its own."""

    def run(self, *arguments: str, **options: Any) -> Any:
        return super().run(*arguments, command=self.command(*arguments), **options)

    def json(self, *arguments: str) -> Any:
        done = self.run(*arguments, "--format", "json")
        assert done.stdout, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    shutil.copytree(REPOSITORY / "coe_cli", tmp_path / "site" / "coe_cli", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(REPOSITORY / "profiles", tmp_path / "site" / "coe_cli" / "profiles")
    for name, code in files_of_the_page().items():
        (tmp_path / "site" / f"{name.replace('.', '/')}.py").write_text(code, encoding="utf-8")
    coe = Toy(tmp_path, tmp_path / "models")
    path = [tmp_path / "site", REPOSITORY / "tests" / "toy_oga", os.environ.get("PYTHONPATH", "")]
    coe.environment |= {"PYTHONPATH": os.pathsep.join(map(str, path)), "COE_PROFILE": "toy"}
    one = "profiles: {toy: {provider: npu, vram_budget_mb: 4000, max_concurrent_slots: 1, context_length: 1024}}"
    (coe.config / "hardware_profiles.yaml").write_text(one, encoding="utf-8")
    return coe


@pytest.mark.long
def test_a_provider_of_two_files_has_every_command(toy: Toy, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "source", seed=0)
    toy.run("models", "import", str(tmp_path / "source"), "--name", "small", "--provider", "npu").check()
    (listed,) = [model for model in toy.json("models", "list")["models"] if model["name"] == "small"]
    assert (listed["provider"], listed["runs_on"]) == ("npu", ["npu", "cpu"])
    plan = toy.json("vram", "plan", "--model", "small", "--provider", "npu")
    assert plan["provider"] == "npu" and plan["fits"]
    said = [finding["message"] for finding in toy.json("doctor")["findings"]]
    assert any("small runs on npu: it was built for npu" in message for message in said)
    assert any(message.startswith("ONNX Runtime GenAI") and "npu" in message for message in said)
    bench = toy.json("bench", "small", "--prompt-tokens", "8", "--gen-tokens", "2", "-r", "1", "--warm-up", "0")
    assert [row["prompt_tokens"] for row in bench["rows"]] == [8]
    with serving(toy) as served:
        assert served.chat("Hello", model="small", max_tokens=4).status == 200
        asked = toy.run(
            "ask", "-m", "small", "--max-tokens", "2", "--format", "json", "Hello", COE_NO_SERVE="0"
        ).check()
        assert (json.loads(asked.stdout)["provider"], [m["name"] for m in served.status()["models"]]) == (
            "npu",
            ["small"],
        )
