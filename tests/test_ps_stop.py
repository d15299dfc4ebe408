"""`coe ps` and `coe stop`: what they say, their JSON, and what is left afterwards."""

from __future__ import annotations

import io
import json
import threading

import psutil
import pytest
from conftest import ENDLESS, MODEL, Coe, eventually, is_gone, one_line, read_some, sleeping_model, workers_of
from operating_system import interrupt
from rich.console import Console
from serving import Served, serving

from coe_cli.core.duration import parse_duration_s
from coe_cli.core.scheduling.college_status import CollegeStatus, ModelLine
from coe_cli.output.college_view import status_table

KEYS = [
    "schema_version",
    "pid",
    "url",
    "profile",
    "uptime_s",
    "models",
    "pressure",
    "usage_mb",
    "pool_mb",
    "queue_length",
    "notices",
    "device",
    "elsewhere_mb",
    "elsewhere_by",
]
MODEL_KEYS = [
    "name",
    "pid",
    "state",
    "running",
    "max_slots",
    "waiting",
    "context_length",
    "reserved_mb",
    "measured_mb",
    "idle_s",
    "kv_reserved_mb",
    "held_mb",
    "written_tokens",
    "waits_for",
    "slots",
]


@pytest.fixture
def coe(quick_coe: Coe) -> Coe:
    return quick_coe


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("300", 300), ("30s", 30), ("5m", 300), ("1h", 3600), ("1.5m", 90), ("0", None), ("never", None), ("-1", None)],
)
def test_keep_alive_is_read_as_people_write_it(text: str, seconds: float | None) -> None:
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "5 minutes", "1d", "m", "1e3", "nan"])
def test_what_is_not_a_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time"):
        parse_duration_s(text)


def test_without_a_college_there_is_a_sentence(coe: Coe) -> None:
    result = coe.run("ps").check()
    assert (result.stdout, one_line(result.stderr)[:28]) == ("", "coe: no college is running; ")
    status = json.loads(coe.run("ps", "--format", "json").check().stdout)
    assert list(status) == KEYS
    assert (status["pid"], status["url"], status["models"]) == (None, None, [])
    assert coe.run("stop").check().stderr == "coe: no college is running\n"
    assert coe.run("stop", MODEL).code == 4
    assert not (coe.folder / "state").exists()


def test_json_keys_are_pinned(served: Served) -> None:
    assert served.chat(max_tokens=2).status == 200
    status = served.status()
    assert list(status) == KEYS
    (model,) = status["models"]
    assert list(model) == MODEL_KEYS
    assert list(status["pressure"]) == ["ratio", "level"]
    assert (model["name"], model["state"], model["context_length"]) == (MODEL, "ready", 4096)
    assert model["pid"] in [child.pid for child in served.process.children()]
    assert status["pid"] == served.process.pid and status["profile"] == "embedded"
    rss_mb = psutil.Process(model["pid"]).memory_info().rss / 2**20
    assert model["measured_mb"] == pytest.approx(rss_mb, rel=0.1)
    assert status["usage_mb"] >= model["reserved_mb"] > 0


def test_the_table_names_model_and_memory(served: Served) -> None:
    served.chat(max_tokens=2)
    text = served.coe.run("ps").check().stdout
    assert served.url in text and MODEL in text and "0/2" in text and "\x1b" not in text


def test_on_80_columns_names_give_way_and_figures_stay_whole() -> None:
    lines = [
        ModelLine("DeepSeek-R1-Distill-Qwen-7B-DML", 1234567, "ready", 1, 2, 3, 16384, 16500, 16600.0, None, 448),
        ModelLine("sqlcoder-7b-2-DML", None, "evicting", 0, 2, 1, 8192, 8000, None, 5000.0),
    ]
    status = CollegeStatus(pid=1, url="http://127.0.0.1:1", profile="standard", uptime_s=1.0, models=lines)
    for width in (80, 120):
        console = Console(width=width, file=io.StringIO())
        console.print(status_table(status))
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert "…" not in text and max(map(len, text.splitlines())) <= width
        for part in (
            "1234567",
            "1/2",
            "16,384",
            "448 MB",
            "16.1 GB",
            "16.2 GB",
            "unknown",
            "1h 23m",
            "evicting",
            "measured",
        ):
            assert part in text
    assert "DeepSeek-R1-Distill-Qwen-7B-DML" in text


def test_a_running_answer_is_seen(served: Served) -> None:
    connection = served.connect()
    messages = [{"role": "user", "content": ENDLESS}]
    body = {"model": MODEL, "messages": messages, "stream": True, "temperature": 0}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    response.readline()
    (slot,) = eventually(
        lambda: [s for line in served.snapshot()["models"] for s in line["slots"] if s["completion_tokens"]]
    )
    assert served.snapshot()["models"][0]["running"] == 1
    assert list(slot) == ["expert", "prompt_tokens", "reused_tokens", "completion_tokens"]
    assert slot["expert"] is None and slot["prompt_tokens"] > slot["reused_tokens"] and slot["completion_tokens"] > 0
    response.close()
    connection.close()
    eventually(lambda: served.snapshot()["models"][0]["running"] == 0)
    assert served.snapshot()["models"][0]["slots"] == []


def test_one_model_is_taken_out(served: Served) -> None:
    served.chat(max_tokens=2)
    (worker,) = workers_of(served.process)
    assert "taken out" in served.coe.run("stop", MODEL).check().stderr
    eventually(lambda: is_gone(worker))
    assert served.status()["models"] == []
    assert served.coe.run("stop", MODEL).code == 4
    assert served.chat(max_tokens=2).json["coe"]["load_s"] > 0


def test_a_second_serve_says_that_one_runs(served: Served) -> None:
    result = served.coe.run("serve").check()
    assert result.stdout.strip() == served.url
    assert "already" in result.stderr


def test_stop_ends_everything(coe: Coe) -> None:
    with serving(coe) as served:
        served.chat(max_tokens=2)
        processes = [served.process, *served.process.children()]
        assert coe.run("stop").check().stderr == "coe: the college has ended\n"
        eventually(lambda: all(is_gone(process) for process in processes))


def test_drain_finishes_what_is_being_answered(sleeper: Coe) -> None:
    go_on = sleeper.folder / "go on"
    sleeping_model(sleeper, MODEL, hold_at_step=4, until=str(go_on))
    with serving(sleeper) as served:
        served.chat(max_tokens=2)
        answers = []
        asking = threading.Thread(target=lambda: answers.append(served.chat(max_tokens=8)))
        asking.start()
        eventually(lambda: served.snapshot()["models"][0]["running"] == 1)
        stopping = sleeper.start("stop", "--drain")
        eventually(lambda: served.request("GET", "/healthz").json["status"] == "draining")
        assert "takes no more requests, and ends when" in sleeper.run("ps").check().stdout
        refused = served.chat(max_tokens=2)
        assert (refused.status, refused.error["code"]) == (503, "draining")
        assert int(refused.headers["retry-after"]) >= 1
        assert stopping.poll() is None
        go_on.touch()
        asking.join()
        assert answers[0].json["usage"]["completion_tokens"] == 8
        stopping.communicate(timeout=200)
        assert stopping.returncode == 0


@pytest.mark.long
def test_a_college_that_does_not_answer_is_ended(coe: Coe) -> None:
    with serving(coe) as served:
        process = served.process
        process.suspend()
        assert "did not answer and was ended" in coe.run("stop").check().stderr
        eventually(lambda: is_gone(process))


def test_in_the_foreground_it_says_what_it_does_until_it_is_interrupted(coe: Coe) -> None:
    process = coe.start("serve", "--foreground")
    url = read_some(process.stdout, 20).decode().strip()
    served = Served(coe, url)
    assert served.chat(max_tokens=2).status == 200
    assert served.state["pid"] == process.pid
    errors = b""
    while b"smollm2-135m" not in errors:  # it looks at the college now and then
        errors += read_some(process.stderr)
    interrupt(process)
    out, rest = process.communicate(timeout=200)
    assert process.returncode == 0
    assert out == b""
    assert b"Traceback" not in errors + rest


def test_watch_ends_with_the_college(coe: Coe) -> None:
    with serving(coe):
        watching = coe.start("ps", "--watch", "--format", "json")
        line = read_some(watching.stdout, 20)
        assert list(json.loads(line.splitlines()[0])) == KEYS
        coe.run("stop").check()
        _, errors = watching.communicate(timeout=200)
        assert watching.returncode == 0
        assert errors == b"coe: the college has ended\n"
