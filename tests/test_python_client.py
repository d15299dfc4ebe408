"""`from coe_cli import Client`: asks, streams and plans as the commands do, with a model of a few kilobytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import Coe
from model_store.tiny_model import catalog_entry, write_tiny_model
from serving import serving

USE = """
import json
from coe_cli import Client
with Client(serve={serve}) as client:
    whole = client.ask("Hello?", expert="plain", seed=1, max_tokens=8)
    stream, text = client.stream([{{"role": "user", "content": "Hello?"}}], expert="plain", seed=1, max_tokens=8), ""
    while True:
        try:
            text += next(stream)
        except StopIteration as end:
            streamed = end.value
            break
    plan = client.plan(["plain"], context_length=128, slots=1)
print(json.dumps([whole.answer, text, streamed.answer, whole.model, whole.usage.completion_tokens, plan.fits, plan.total_mb]))
"""


@pytest.fixture(scope="module")
def home(home: Coe) -> Coe:
    write_tiny_model(home.models / "plain-model", seed=3)
    role = {"description": "x", "system_prompt": "", "model": "plain-model", "prompt_format": "plain"}
    role["template"] = "S:{system}\nQ:{question}\nA:"
    experts = {"general_reasoner": role, "plain": role}
    models = {"plain-model": catalog_entry("file:/nowhere")}
    catalog = {"default_model": "plain-model", "models": models, "experts": experts}
    (home.config / "experts.yaml").write_text(yaml.safe_dump(catalog))
    return home


def _use(home: Coe, *, serve: bool) -> list[object]:
    used: list[object] = json.loads(home.run(command=[sys.executable, "-c", USE.format(serve=serve)]).check().stdout)
    return used


def test_ask_stream_and_plan_in_this_process_are_what_the_commands_say(home: Coe) -> None:
    whole, text, streamed, model, tokens, fits, total_mb = _use(home, serve=False)
    arguments = ["ask", "-e", "plain", "--seed", "1", "--max-tokens", "8", "--no-log", "--format", "json", "Hello?"]
    said = json.loads(home.run(*arguments).check().stdout)
    assert (whole, model, tokens) == (said["answer"], said["model"], said["usage"]["completion_tokens"])
    assert isinstance(text, str) and text.strip("\n") == streamed == whole
    plan = home.run("vram", "plan", "-e", "plain", "--context", "128", "--slots", "1", "--format", "json").check()
    assert fits is True and total_mb == json.loads(plan.stdout)["total_mb"]


def test_the_running_college_answers_the_same(home: Coe) -> None:
    with serving(home):
        assert _use(home, serve=True) == _use(home, serve=False)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_tokens": -1}, "max_tokens"),
        ({"temperature": 9.0}, "temperature"),
        ({"tempurature": 1.0}, "tempurature"),
        ({"expert": "nobody"}, "nobody"),
        ({"model": "nothing"}, "nothing"),
    ],
)
def test_what_is_wrong_is_said_as_an_error_with_a_hint(home: Coe, options: dict[str, object], said: str) -> None:
    script = (
        "from coe_cli import Client\nfrom coe_cli.errors import CoeError\n"
        f"with Client(serve=False) as client:\n  try: client.ask('Hello?', **{options!r})\n"
        "  except CoeError as error: print(error.code, error.message, bool(error.hint))"
    )
    out = home.run(command=[sys.executable, "-c", script]).check().stdout
    assert said in out and out.strip().endswith("True")


def test_the_package_imports_no_client_before_it_is_used(tmp_path: Path) -> None:
    script = "import sys, coe_cli; print([name for name in sys.modules if name.startswith(('coe_cli.', 'msgspec'))])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
