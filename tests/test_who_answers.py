"""A fallback model never looks like the expert: it answers where that was allowed, and every way in names it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY, Coe
from model_store.saying_model import write_saying_model
from model_store.tiny_model import catalog_entry
from serving import Served, serving
from ways import WAYS, say

from coe_cli.core.routing.selection import all_models
from coe_cli.runtime.settings import load_catalog, load_profiles

EXPERT, MISSING, SMALL = "sql_query", "sqlcoder-7b-2-DML", "small-model"
NOT_INSTALLED = f"{EXPERT}'s model {MISSING} is not installed (3.8 GB)"


def college(folder: Path, *, fallback: bool) -> Coe:
    """Expert `sql_query`, whose model is not on disk, beside a model that says one word."""
    coe = Coe(folder, folder / "models")
    write_saying_model(coe.models / SMALL, ["SELECT", " 1"])
    small = {"weights_mb": 10, "shape": {"num_hidden_layers": 1}}  # so that there would be room for it
    catalog = {"default_model": SMALL, "models": {SMALL: catalog_entry("file:/nowhere"), MISSING: small}}
    (coe.config / "experts.yaml").write_text(yaml.safe_dump(catalog))
    profile: dict[str, Any] = {"provider": "cpu", "vram_budget_mb": 4000, "max_concurrent_slots": 2}
    profile |= {"context_length": 512, "fallback": fallback}
    (coe.config / "hardware_profiles.yaml").write_text(
        yaml.safe_dump({"default_profile": "mine", "profiles": {"mine": profile}})
    )
    return coe


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    coe = college(tmp_path_factory.mktemp("strict"), fallback=False)
    with serving(coe) as it:
        yield it
    coe.end_all()


@pytest.fixture(scope="module")
def lenient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    coe = college(tmp_path_factory.mktemp("lenient"), fallback=True)
    with serving(coe) as it:
        yield it
    coe.end_all()


@pytest.mark.parametrize("way", ["ask", "ask, served", "chat", "batch", "/v1"])
def test_nobody_answers_in_the_experts_place_unasked(way: str, strict: Served) -> None:
    coe = strict.coe
    if way == "/v1":
        body = {"model": EXPERT, "messages": [{"role": "user", "content": "Hi"}]}
        response = strict.request("POST", "/v1/chat/completions", body)
        assert response.status == 404 and NOT_INSTALLED in response.error["message"]
    elif way == "batch":
        (coe.folder / "in.jsonl").write_text(json.dumps({"prompt": "Hi", "expert": EXPERT}) + "\n")
        assert coe.run("batch", "in.jsonl", "-o", "out.jsonl", "--restart").code == 1
        error = json.loads((coe.folder / "out.jsonl").read_text())["error"]
        assert error["code"] == "model_missing" and NOT_INSTALLED in error["message"]
    else:
        environment: dict[str, Any] = {"COE_NO_SERVE": "0"} if way == "ask, served" else {}
        command = ["chat"] if way == "chat" else ["ask", "Hi"]
        result = coe.run(*command, "-e", EXPERT, "--no-log", stdin="Hi\n" if way == "chat" else "", **environment)
        assert (result.code, result.stdout) == (4, "")
        assert NOT_INSTALLED in result.stderr and "--fallback" in result.stderr


@pytest.mark.parametrize("way", WAYS)
def test_the_profile_allows_it_and_the_model_is_named(way: str, lenient: Served) -> None:
    said = say(way, lenient, expert=EXPERT, temperature=0)
    assert said.text == "SELECT 1"
    assert said.model in (SMALL, "") and f"{MISSING} is not on disk, {SMALL} answers instead" in said.notes
    if way == "batch":  # its summary
        assert f" by {SMALL}: " in said.notes


@pytest.mark.parametrize("way", ["ask", "chat", "batch"])
def test_the_option_allows_it(way: str, strict: Served) -> None:
    said = say(way, strict, expert=EXPERT, temperature=0, options=("--fallback",))
    assert said.text == "SELECT 1" and said.model in (SMALL, "") and f"{SMALL} answers instead" in said.notes


def test_logs_name_the_model_that_answered(lenient: Served) -> None:
    lenient.coe.run("ask", "-e", EXPERT, "--temperature", "0", "Who?").check()
    logged = json.loads(lenient.coe.run("logs", "show", "--format", "json").check().stdout)
    assert SMALL in json.dumps(logged) and MISSING not in json.dumps(logged)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(("reply", "code"), [("a", 0), ("q", 4)])
def test_a_terminal_asks(reply: str, code: int, strict: Served) -> None:
    import pty

    parent, child = pty.openpty()
    arguments = ["ask", "-e", EXPERT, "--no-log", "--temperature", "0", "Hi"]
    process = strict.coe.start(*arguments, stdin=child, stdout=child, stderr=child, environment={"TERM": "xterm"})
    os.close(child)
    seen, asked = b"", False
    try:
        while part := os.read(parent, 65536):
            seen += part
            if not asked and b"[q]uit" in seen:
                asked = True
                os.write(parent, f"{reply}\n".encode())
    except OSError:  # the terminal's other end is closed
        pass
    os.close(parent)
    assert process.wait(200) == code, seen
    text = seen.decode().replace("\r\n", " ")
    assert f"{NOT_INSTALLED}. Install it, or answer with {SMALL}?" in text
    if code == 0:
        assert "SELECT 1" in text and f"{SMALL} for {EXPERT}" in text


def test_licences_are_said_and_much_is_asked_for(strict: Served) -> None:
    models = [MISSING, "BioMistral-7B-DML", "Qwen2.5-Math-7B-DML"]
    result = strict.coe.run("models", "pull", *models, HF_HUB_OFFLINE="1")
    assert result.code == 2 and "3 models, 12.2 GB in all" in result.stderr and "--yes" in result.stderr
    assert f"{MISSING}: licence CC-BY-SA-4.0 (not checked: the hub does not say), 3.8 GB" in result.stderr
    assert "ready" not in result.stderr and not list(strict.coe.models.glob("*DML*"))


def test_what_is_shipped() -> None:
    catalog = load_catalog([REPOSITORY / "profiles" / "experts.yaml"])
    assert "law-LLM-DML" not in all_models(catalog) and len(all_models(catalog)) == len(catalog.models) - 1
    profiles = load_profiles([REPOSITORY / "profiles" / "hardware_profiles.yaml"]).profiles
    assert [name for name, profile in profiles.items() if profile.fallback] == ["embedded"]
