"""`coe ask` and `coe chat` over the resident college, as a user types them: it starts, is shared, stays and is left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import ENDLESS, MODEL, Coe, copy_model, eventually, is_gone, one_line, read_some
from operating_system import interrupt
from serving import Served

ASK = ("ask", "-m", MODEL, "--temperature", "0", "--max-tokens", "16", "--no-log")
CHAT = ("chat", "-m", MODEL, "--temperature", "0", "--max-tokens", "12", "--no-log")


@pytest.fixture
def home(coe: Coe) -> Coe:
    """coe as it is without COE_NO_SERVE; a college that was started is ended with the test."""
    del coe.environment["COE_NO_SERVE"]
    return coe


def college(home: Coe) -> Served:
    state = json.loads((home.folder / "state" / "college.json").read_text())
    return Served(home, f"http://{state['host']}:{state['port']}")


def answer(home: Coe, *arguments: str) -> dict[str, Any]:
    return json.loads(home.run(*arguments, "--format", "json").check().stdout)


def test_a_question_leaves_a_college_that_answers_the_next_one_the_same(home: Coe) -> None:
    first = answer(home, *ASK, "The capital of France is")
    pid = college(home).state["pid"]
    second = answer(home, *ASK, "The capital of France is")
    alone = answer(home, *ASK, "--no-serve", "The capital of France is")
    assert first["timing"]["load_s"] > 0 and second["timing"]["load_s"] is None
    assert first["answer"] == second["answer"] == alone["answer"] and "Paris" in first["answer"]
    assert college(home).state["pid"] == pid
    assert [line["name"] for line in college(home).status()["models"]] == [MODEL]


def test_json_lines_have_a_line_for_each_token(home: Coe) -> None:
    result = home.run(*ASK, "--format", "jsonl", "Name three colours.").check()
    *tokens, last = [json.loads(line) for line in result.stdout.splitlines()]
    assert {token["type"] for token in tokens} == {"token"}
    assert len(tokens) >= last["usage"]["completion_tokens"] - 2
    assert "".join(token["text"] for token in tokens).strip("\n") == last["answer"]


@pytest.mark.long
def test_no_serve_leaves_nothing_behind(home: Coe) -> None:
    home.run(*ASK, "--no-serve", "Hi").check()
    home.run(*ASK, "Hi", COE_NO_SERVE="1").check()
    home.run(*CHAT, "--no-serve", stdin="Hi\n").check()
    assert not (home.folder / "state" / "college.json").exists()


@pytest.mark.long
def test_two_questions_at_the_same_moment_give_one_college(home: Coe) -> None:
    asked = [home.start(*ASK, "--format", "json", f"Name colour {number}.") for number in range(3)]
    answers = [process.communicate(timeout=120) for process in asked]
    assert [process.returncode for process in asked] == [0] * 3, answers
    loads = [json.loads(out)["timing"]["load_s"] for out, _ in answers]
    assert any(loads)
    status = college(home).status()
    assert [line["state"] for line in status["models"]] == ["ready"], "one college, one worker"
    ours = [p for p in psutil.process_iter() if _of(p, home, "serve_process")]
    assert [p.pid for p in ours] == [status["pid"]]


@pytest.mark.long
def test_ctrl_c_ends_the_answer_and_not_the_college(home: Coe) -> None:
    home.run(*ASK, "Hi").check()
    process = home.start("ask", "-m", MODEL, "--no-log", "--temperature", "0", ENDLESS)
    read_some(process.stdout, 20)
    assert college(home).snapshot()["models"][0]["running"] == 1
    interrupt(process)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 130
    assert b"Traceback" not in said
    eventually(lambda: college(home).snapshot()["models"][0]["running"] == 0)
    assert answer(home, *ASK, "Hi")["timing"]["load_s"] is None, "the model stayed"


@pytest.mark.long
def test_a_conversation_keeps_its_cache_in_the_college(home: Coe) -> None:
    home.run(*ASK, "Hi").check()
    script = "The capital of France is\nAnd of Spain?\n/stats\n"
    shared = home.run(*CHAT, stdin=script).check()
    alone = home.run(*CHAT, "--no-serve", stdin=script).check()
    assert shared.stdout == alone.stdout
    for result in (shared, alone):
        reused = next(line for line in result.stderr.splitlines() if "from the cache" in line)
        assert int(reused.split("from the cache ")[1].split()[0]) > 10
    worker = college(home).status()["models"][0]["pid"]
    assert psutil.pid_exists(worker), "the chat has ended and the model stays"


@pytest.mark.long
def test_ask_c_goes_on_in_the_same_cache(home: Coe) -> None:
    ask = tuple(argument for argument in ASK if argument != "--no-log")
    home.run(*ask, "The capital of France is").check()
    second = answer(home, *ask, "-c", "And of Spain?")
    assert second["timing"]["load_s"] is None
    metrics = college(home).request("GET", "/metrics").body.decode()
    reused = next(line for line in metrics.splitlines() if line.startswith("coe_reused_prompt_tokens_total "))
    assert float(reused.split()[1]) > 10, "the first question's tokens were in the slot"


@pytest.mark.long
def test_a_chat_goes_on_when_the_college_has_ended(home: Coe) -> None:
    home.run(*ASK, "Hi").check()
    chat = home.start(*CHAT, stdin=-1)
    assert chat.stdin is not None
    chat.stdin.write(b"Name a colour.\n")
    chat.stdin.flush()
    read_some(chat.stdout)
    home.run("stop").check()
    chat.stdin.write(b"Name another one.\n")
    chat.stdin.close()
    chat.stdin = None
    chat.communicate(timeout=200)
    assert chat.returncode == 0
    assert [line["name"] for line in college(home).status()["models"]] == [MODEL]


@pytest.mark.long
@pytest.mark.parametrize(
    "change",
    [
        "profiles",
        "models",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("catalog", "profile")),
    ],
)
def test_a_college_with_other_settings_is_not_asked(home: Coe, change: str, models_dir: Path) -> None:
    home.run(*ASK, "Hi").check()
    pid = college(home).state["pid"]
    arguments: tuple[str, ...] = ()
    environment: dict[str, Any] = {}
    if change == "profiles":
        (home.config / "hardware_profiles.yaml").write_text("keep_alive: 2m\n")
    elif change == "catalog":
        (home.config / "experts.yaml").write_text(f"experts:\n  shouter: {{model: {MODEL}, system_prompt: SHOUT}}\n")
    elif change == "models":
        copy_model(models_dir / MODEL, home.folder / "models" / MODEL)
        environment = {"COE_MODELS_DIR": str(home.folder / "models")}
    else:
        arguments = ("-p", "minimal")
    for command, stdin in ((ASK, ""), (CHAT, "Hi\n")):
        result = home.run(*command, *arguments, *(("Hi",) if command is ASK else ()), stdin=stdin, **environment)
        said = one_line(result.check().stderr)
        assert "the running college has" in said and "`coe stop` ends it" in said
        assert result.stdout.strip()
    assert psutil.pid_exists(pid)
    home.run("stop").check()
    assert home.run(*ASK, *arguments, "Hi", **environment).check().stderr == "", "a new one has read them"


@pytest.mark.long
def test_a_college_that_dies_in_mid_answer_is_an_error_and_no_hang(home: Coe) -> None:
    home.run(*ASK, "Hi").check()
    process = home.start("ask", "-m", MODEL, "--no-log", "--temperature", "0", ENDLESS)
    read_some(process.stdout, 20)
    served = college(home)
    workers = served.process.children()
    psutil.Process(served.process.pid).kill()
    _, said = process.communicate(timeout=200)
    assert process.returncode == 7
    assert "the college ended in the middle of it" in one_line(said.decode())
    eventually(lambda: all(is_gone(worker) for worker in workers))
    assert answer(home, *ASK, "Hi")["timing"]["load_s"] > 0, "the next question starts another"


@pytest.mark.long
@pytest.mark.parametrize("form", [("--format", "json"), ("-x",)])
def test_an_answer_that_nobody_has_seen_starts_again_when_its_worker_dies(home: Coe, form: tuple[str, ...]) -> None:
    question = "Write a long Python program with many functions in a ```python block."
    ask = ("ask", "-m", MODEL, "--temperature", "0", "--max-tokens", "200", "--no-log", *form, question)
    undisturbed = home.run(*ask).check().stdout
    served = college(home)
    (worker,) = (pid for model in served.snapshot()["models"] if (pid := model["pid"]))
    psutil.Process(worker).suspend()  # so that it cannot answer before it is seen to
    process = home.start(*ask)
    eventually(lambda: any(model["running"] for model in served.snapshot()["models"]))
    psutil.Process(worker).resume()
    eventually(
        lambda: any(slot["completion_tokens"] for model in served.snapshot()["models"] for slot in model["slots"])
    )
    psutil.Process(worker).kill()
    written, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    assert [model["pid"] for model in served.snapshot()["models"]] != [worker]
    if form == ("-x",):
        assert written.decode() == undisturbed
        return
    again, before = json.loads(written), json.loads(undisturbed)
    assert again["answer"] == before["answer"] and again["usage"] == before["usage"]
    assert again["timing"]["load_s"] > 0, "it was killed in mid-answer, and loaded again"


def _of(process: psutil.Process, home: Coe, what: str) -> bool:
    try:
        return (
            any(what in part for part in process.cmdline())
            and process.environ().get("COE_STATE_DIR") == home.environment["COE_STATE_DIR"]
            and process.status() != psutil.STATUS_ZOMBIE
        )
    except (psutil.Error, OSError):
        return False
