"""`coe batch` as its users run it: with the real model, in pipes, interrupted, killed and resumed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import MODEL, REPOSITORY, Coe, Result, copy_model, eventually, is_gone, one_line
from faulty_worker import expected
from openai.types import Completion
from openai.types.chat import ChatCompletion
from operating_system import WINDOWS, interrupt

DRIVER = [sys.executable, str(Path(__file__).with_name("batch_driver.py"))]
SHORT = {"model": MODEL, "max_tokens": 6, "temperature": 0}
ANSWER_KEYS = ["id", "line", "answer", "expert", "model", "finish_reason", "usage", "timing"]


def write_rows(path: Path, rows: list[Any]) -> Path:
    """JSON lines; texts and bytes are written as they are."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def read_rows(text: str) -> list[dict[str, Any]]:
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def by_line(path: Path) -> dict[int, dict[str, Any]]:
    rows = read_rows(path.read_text())
    found = {row["line"]: row for row in rows}
    assert len(found) == len(rows), "a row was done twice"
    return found


# --- formats


@pytest.fixture(scope="module")
def mixed(shared_coe: Coe) -> tuple[Result, list[dict[str, Any]]]:
    """One run over good and bad lines of both formats, in a pipe and in the input's order."""
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "Say hi."}], "max_tokens": 5, "temperature": 0}
    rows = [
        {"id": "first", "prompt": "Name a colour.", **SHORT},
        {"prompt": "Tell a story", "model": MODEL, "max_tokens": 12, "temperature": 0.9, "seed": 11, "label": "x"},
        "{not json",
        "",
        {"id": "first", "prompt": "again", **SHORT},
        {"custom_id": "c", "method": "POST", "url": "/v1/chat/completions", "body": chat},
        {"custom_id": "t", "method": "POST", "url": "/v1/completions", "body": {**SHORT, "prompt": "One, two,"}},
        {"custom_id": "w", "method": "POST", "url": "/v1/chat/completions", "body": chat | {"max_tokens": "many"}},
        {"custom_id": "n", "method": "POST", "url": "/v1/chat/completions", "body": chat | {"model": "nobody"}},
        {"id": 10, "prompt": "word " * 6000, **SHORT},
        {
            "id": 11,
            "messages": [{"role": "user", "content": "What are you?"}],
            "system": "You are a dragon.",
            **SHORT,
        },
    ]
    source = write_rows(shared_coe.folder / "mixed.jsonl", rows)
    result = shared_coe.run("batch", "-", "--keep-order", stdin=source.read_bytes())
    return result, read_rows(result.stdout)


def test_answers_have_their_pinned_keys(mixed: tuple[Result, list[dict[str, Any]]]) -> None:
    first, story = mixed[1][0], mixed[1][1]
    assert list(first) == list(story) == ANSWER_KEYS
    assert (first["id"], first["line"], story["id"], story["line"]) == ("first", 1, 2, 2)
    assert list(first["usage"]) == ["prompt_tokens", "completion_tokens"]
    assert list(first["timing"]) == ["load_s", "first_token_s", "decode_s", "total_s", "tokens_per_s"]
    assert (first["model"], first["expert"]) == (MODEL, None)


def test_a_row_has_the_answer_that_ask_gives(mixed: tuple[Result, list[dict[str, Any]]], answered: Coe) -> None:
    asked = answered.run(
        "ask", "-m", MODEL, "--max-tokens", "12", "--temperature", "0.9", "--seed", "11", "Tell a story"
    )
    assert mixed[1][1]["answer"] == asked.check().stdout.rstrip("\n") != ""
    greedy = answered.run("ask", "-m", MODEL, "--max-tokens", "6", "--temperature", "0", "-s", "You are a dragon.",
                            "What are you?").check()  # fmt: skip
    assert mixed[1][-1]["answer"] == greedy.stdout.rstrip("\n") != ""


def test_bad_lines_are_told_with_their_number_and_stop_nothing(mixed: tuple[Result, list[dict[str, Any]]]) -> None:
    result, rows = mixed
    assert result.code == 1
    assert [row.get("line") or row["id"] for row in rows] == [
        1, 2, 3, 5, "batch_req_6", "batch_req_7", "batch_req_8", "batch_req_9", 10, 11,
    ]  # fmt: skip
    codes = {row["line"]: row["error"]["code"] for row in rows if "line" in row and row.get("error")}
    assert codes == {3: "invalid_row", 5: "invalid_row", 10: "prompt_too_long"}
    assert list(rows[2]) == ["id", "line", "error", "expert", "model"]
    notes = result.stderr.splitlines()
    assert any(note.startswith("coe: line 3: it is not JSON") for note in notes)
    assert "coe: line 5: its id 'first' is that of line 1 too" in notes
    assert any(note.startswith("coe: line 10: the prompt has 6") for note in notes)
    assert "coe: the key `label` means nothing to coe and is ignored (first in line 2)" in notes
    assert notes[-1].startswith("coe: 10 rows in ") and notes[-1].endswith("; 5 failed")


def test_an_expert_that_is_none_is_said_to_be_none(quick_coe: Coe) -> None:
    """Neither is a model one, where an expert is asked for."""
    rows = [{"prompt": "Hi", "expert": name} for name in ("sql_qery", MODEL)]
    result = quick_coe.run("batch", "-", stdin=b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    assert result.code == 1
    errors = [row["error"] for row in read_rows(result.stdout)]
    assert [error["message"] for error in errors] == ["unknown expert `sql_qery`", f"unknown expert `{MODEL}`"]
    assert "Did you mean `sql_query`" in errors[0]["hint"]


def test_openai_lines_come_back_in_openais_shape(mixed: tuple[Result, list[dict[str, Any]]]) -> None:
    chat, text, wrong, nobody = mixed[1][4:8]
    for line in (chat, text, wrong, nobody):
        assert list(line) == ["id", "custom_id", "response", "error"]
    assert (chat["custom_id"], chat["error"], chat["response"]["status_code"]) == ("c", None, 200)
    answer = ChatCompletion.model_validate(chat["response"]["body"], strict=True)
    assert answer.choices[0].message.content and answer.usage is not None and answer.usage.completion_tokens == 5
    assert Completion.model_validate(text["response"]["body"], strict=True).choices[0].text
    assert wrong["response"] is None and wrong["error"]["code"] == "invalid_row" and wrong["error"]["line"] == 8
    assert nobody["response"]["status_code"] == 404
    assert nobody["response"]["body"]["error"]["code"] == "model_not_found"
    assert nobody["error"]["code"] == "model_missing"


@pytest.mark.long
def test_rows_that_name_nobody_are_routed_in_bulk(routing_coe: Coe) -> None:
    rows: list[dict[str, Any]] = [
        {"id": 1, "prompt": "Write a SELECT that counts the orders of each customer", "max_tokens": 2},
        {"id": 2, "prompt": "Is this clause in my employment contract binding?", "max_tokens": 2},
        {"id": 3, "prompt": "Hello", "expert": "math_expert", "max_tokens": 2},
    ]
    questions = "\n".join(row["prompt"] for row in rows[:2])
    routed = [row["experts"][0]["name"] for row in read_rows(routing_coe.run("route", "--format", "jsonl", "-", stdin=questions).check().stdout)]  # fmt: skip
    out = routing_coe.folder / "out.jsonl"
    routing_coe.run("batch", str(write_rows(routing_coe.folder / "in.jsonl", rows)), "-o", str(out)).check()
    assert {row["id"]: row["expert"] for row in read_rows(out.read_text())} == {
        1: routed[0],
        2: routed[1],
        3: "math_expert",
    }


# --- what can be asked for wrongly


def test_empty_input_is_an_empty_output(coe: Coe) -> None:
    source, out = write_rows(coe.folder / "in.jsonl", ["", ""]), coe.folder / "out.jsonl"
    result = coe.run("batch", str(source), "-o", str(out)).check()
    assert (out.read_text(), one_line(result.stderr)) == ("", "coe: the input has no rows")
    assert coe.run("batch", "-").check().stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.jsonl"], "none.jsonl does not exist"),
        (["."], ". is a folder"),
        (["in.jsonl", "-o", "in.jsonl"], "in.jsonl is the input and the output"),
        (["in.jsonl", "-o", "no/folder/out.jsonl"], "no/folder does not exist"),
        (["in.jsonl", "-o", "foreign.txt"], "foreign.txt exists already and no batch of coe has begun it"),
        (["in.jsonl", "-o", "foreign.txt", "--keep-order"], "foreign.txt exists already"),
        (["in.jsonl", "--retries", "-1"], "--retries"),
        (["in.jsonl", "--retry-failed"], "without -o no earlier run is known"),
        (["in.jsonl", "-o", "out.jsonl", "--retry-failed", "--restart"], "--restart runs every row again"),
    ],
)
def test_what_cannot_be_is_refused_with_advice(coe: Coe, arguments: list[str], message: str) -> None:
    write_rows(coe.folder / "in.jsonl", [{"prompt": "p", **SHORT}])
    (coe.folder / "foreign.txt").write_text("mine\n")
    result = coe.run("batch", *arguments)
    assert result.code == 2
    assert message in one_line(result.stderr)
    assert (coe.folder / "foreign.txt").read_text() == "mine\n"


def test_a_batch_whose_models_do_not_fit_says_the_numbers(coe: Coe) -> None:
    config = "profiles:\n  narrow: {provider: cpu, vram_budget_mb: %d, max_concurrent_slots: 2, context_length: 4096}\n"
    source = write_rows(coe.folder / "in.jsonl", [{"prompt": "Hi", **SHORT}])
    for budget_mb in (300, 1):
        (coe.config / "hardware_profiles.yaml").write_text(config % budget_mb)
        result = coe.run("batch", "-p", "narrow", "--model", MODEL, str(source))
        assert (result.code, result.stdout) == (5, ""), result.stderr
        assert f"`{MODEL}` needs " in " ".join(result.stderr.split()) and "ValueError" not in result.stderr


def test_fail_fast_ends_before_anything_is_loaded(coe: Coe) -> None:
    source = write_rows(coe.folder / "in.jsonl", [{"prompt": "p", **SHORT}, "{"])
    result = coe.run("batch", str(source), "--fail-fast")
    assert (result.code, [row["line"] for row in read_rows(result.stdout)]) == (1, [2])
    assert "line 2 failed: it is not JSON" in one_line(result.stderr)


@pytest.mark.parametrize("options", [(), pytest.param(("--keep-order",), marks=pytest.mark.long)])
def test_failed_rows_are_run_again_only_where_that_is_asked_for(quick_coe: Coe, options: tuple[str, ...]) -> None:
    """A model that is not there at first, and a line that never is a row."""
    rows = [{"prompt": "Name a colour.", **SHORT}, {"prompt": "Name a river.", **SHORT, "model": "late"}, "{"]
    rows += [{"prompt": "Name a tree.", **SHORT}, {"prompt": "Name a fish.", **SHORT, "model": "late"}]
    source, out = write_rows(quick_coe.folder / "in.jsonl", rows), quick_coe.folder / "out.jsonl"
    command = ("batch", str(source), "-o", str(out), *options)
    first = quick_coe.run(*command)
    assert first.code == 1 and "3 failed" in first.stderr.splitlines()[-1]
    before = by_line(out)
    assert {line for line, row in before.items() if "error" in row} == {2, 3, 5}
    copy_model(quick_coe.models / MODEL, quick_coe.models / "late")
    untouched = out.read_bytes()
    again = quick_coe.run(*command)
    assert (again.code, out.read_bytes()) == (1, untouched), "errors count as done"
    assert (
        one_line(again.stderr) == "coe: all 5 rows are in the output already; 3 failed (--retry-failed runs them again)"
    )
    retried = quick_coe.run(*command, "--retry-failed")
    assert retried.code == 1 and "coe: 3 rows that failed are run again\n" in retried.stderr
    assert retried.stderr.splitlines()[-1].startswith("coe: 5 rows (2 before) in ")
    after = by_line(out)
    assert set(after) == {1, 2, 3, 4, 5}
    assert (after[1], after[4]) == (before[1], before[4]), "answers are kept as they are, timing and all"
    assert all(after[line]["answer"] and after[line]["model"] == "late" for line in (2, 5))
    assert after[3]["error"] == before[3]["error"]
    if options:
        assert list(after) == [1, 2, 3, 4, 5]


# --- going on, with workers that have no model

IN_ANY_AND_THE_INPUTS_ORDER = [[], pytest.param(["--keep-order"], marks=pytest.mark.long)]


class Batches:
    """Batches of two hundred rows on fake workers in a folder of their own."""

    def __init__(self, coe: Coe, rows: int = 200, **fault: Any) -> None:
        self.coe = coe
        del coe.environment["COE_THREADS"]  # a worker for each core
        self.faults = coe.folder / "faults"
        self.faults.mkdir()
        self.set_fault(**fault)
        self.rows = [
            {"id": f"r{number}", "prompt": f"question {number}", "model": MODEL, "max_tokens": 5, "seed": number}
            for number in range(1, rows + 1)
        ]
        self.source = write_rows(coe.folder / "in.jsonl", self.rows)
        self.out = coe.folder / "out.jsonl"

    def set_fault(self, **fault: Any) -> None:
        """How the workers that are started from now on misbehave."""
        (self.faults / "faults.json").write_text(json.dumps({MODEL: [{"step_s": 0.002} | fault]}))

    def command(self, *options: str) -> list[str]:
        return [*DRIVER, str(self.faults), str(self.source), str(self.out), *options]

    def run(self, *options: str, **environment: Any) -> Result:
        return self.coe.run(command=self.command(*options), **environment)

    def start(self, *options: str, **environment: str) -> subprocess.Popen[bytes]:
        return self.coe.start(command=self.command(*options), environment=environment)

    def check(self) -> None:
        """Every row is there once, with the answer of a worker that is left alone."""
        found = by_line(self.out)
        assert sorted(found) == list(range(1, len(self.rows) + 1))
        for line, row in found.items():
            assert row["id"] == f"r{line}"
            assert row["answer"] == expected(f"question {line}", line, 5)

    def written(self) -> int:
        return self.out.read_bytes().count(b"\n") if self.out.exists() else 0

    def kill_when(self, lines: int, *options: str) -> None:
        """Kill it once so many rows are in the output, whatever is being written then: it cannot be far from there."""
        process = self.start_held(lines, *options, held_at=lines + 50)
        process.kill()
        process.wait()
        self.set_fault()

    def start_held(self, lines: int, *options: str, held_at: int = 1) -> subprocess.Popen[bytes]:
        """Start it and wait for so many rows in the output; at ``held_at`` the workers stop, until ``go_on``."""
        self.set_fault(hold=[str(self.out), max(lines, held_at)])
        process = self.start(*options)
        eventually(lambda: self.written() >= lines or process.poll() is not None)
        return process

    def go_on(self) -> None:
        (self.faults / "go_on").touch()


@pytest.fixture
def batches(coe: Coe) -> Iterator[Batches]:
    made = Batches(coe)
    yield made
    coe.end_all()
    pids = [int(pid) for pid in (made.faults / "pids").read_text().split()] if (made.faults / "pids").exists() else []
    eventually(lambda: all(map(is_gone, pids)))


@pytest.mark.long
@pytest.mark.parametrize("options", IN_ANY_AND_THE_INPUTS_ORDER)
def test_killed_twice_it_goes_on_with_nothing_lost_and_nothing_twice(batches: Batches, options: list[str]) -> None:
    batches.kill_when(20, *options)
    kept = batches.out.read_bytes()
    batches.kill_when(90, *options)
    if not options:
        whole = kept[: kept.rfind(b"\n") + 1]
        assert batches.out.read_bytes().startswith(whole), "what was written stays"
    result = batches.run(*options).check()
    assert "rows were done before" in result.stderr
    batches.check()
    if options:
        assert [row["line"] for row in read_rows(batches.out.read_text())] == list(range(1, 201))
    again = batches.run(*options).check()
    assert one_line(again.stderr) == "coe: all 200 rows are in the output already"


@pytest.mark.long
@pytest.mark.parametrize("options", IN_ANY_AND_THE_INPUTS_ORDER)
@pytest.mark.parametrize("change", [lambda data: data + b"mine\n", lambda data: data.replace(b"line", b"LINE", 1)])
def test_an_output_that_somebody_changed_is_left_as_it_is(
    batches: Batches, options: list[str], change: Callable[[bytes], bytes]
) -> None:
    batches.kill_when(20, *options)
    changed = change(batches.out.read_bytes())
    batches.out.write_bytes(changed)
    result = batches.run(*options)
    assert result.code == 2, result.stderr
    assert "--restart" in one_line(result.stderr)
    assert batches.out.read_bytes() == changed


@pytest.mark.long
def test_two_batches_on_one_output_are_refused(batches: Batches) -> None:
    first = batches.start_held(1)
    second = batches.run()
    batches.go_on()
    assert second.code == 2
    assert "another `coe batch` is writing to" in one_line(second.stderr)
    assert first.wait() == 0
    batches.check()


@pytest.mark.long
def test_another_input_for_the_same_output_is_refused(batches: Batches) -> None:
    batches.run().check()
    before = batches.out.read_bytes()
    write_rows(batches.source, batches.rows[:-1])
    result = batches.run()
    assert result.code == 2
    assert "belongs to an earlier batch and the input has changed since" in one_line(result.stderr)
    assert batches.out.read_bytes() == before


@pytest.mark.long
@pytest.mark.skipif(WINDOWS, reason="limits of POSIX")
@pytest.mark.parametrize("options", IN_ANY_AND_THE_INPUTS_ORDER)
def test_a_file_that_may_not_grow_leaves_what_is_done_and_goes_on(batches: Batches, options: list[str]) -> None:
    """RLIMIT_FSIZE: the system itself refuses the write in the middle of a line."""
    result = batches.run(*options, COE_TEST_FSIZE="9000")
    assert result.code == 1
    message = result.stderr.splitlines()[-1]
    assert "the disk is full; " in message and "run the same command" in message
    safe = int(message.partition(" rows are safe in ")[0].split()[-1])
    assert 10 < safe < 199
    assert batches.written() > 10 or options, "in the input's order they wait, in the journal, for the slowest"
    batches.run(*options).check()
    batches.check()


@pytest.mark.long
@pytest.mark.skipif(WINDOWS, reason="mounts a small disk")
def test_a_full_disk_leaves_what_is_done_and_goes_on(batches: Batches) -> None:
    """A file system of 64 KB that is really full."""
    disk = batches.coe.folder / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        batches.out = disk / "out.jsonl"
        (disk / "ballast").write_bytes(b"x" * 20_000)
        result = batches.run()
        assert result.code == 1
        assert "the disk is full; " in result.stderr.splitlines()[-1]
        assert 10 < batches.written() < 199
        (disk / "ballast").unlink()
        moved = batches.run()
        if moved.code:  # 200 rows and their journal may need more than there is: then on with more room
            subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
            batches.run().check()
        batches.check()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_ctrl_c_finishes_the_running_rows_and_says_how_to_go_on(batches: Batches) -> None:
    process = batches.start_held(5)
    interrupt(process)
    assert process.stderr is not None
    said = b"coe: Ctrl-C: finishing the rows that are running; once more drops them"
    assert any(line.strip() == said for line in process.stderr)
    batches.go_on()
    lines = process.communicate(timeout=200)[1].decode().splitlines()
    assert process.returncode == 130
    done = batches.written()
    assert f"stopped: {done} of 200 rows are done in {batches.out}" in lines[-1] and "Go on with: " in lines[-1]
    assert 5 <= done < 200
    batches.run().check()
    batches.check()


def test_ctrl_c_twice_drops_the_running_rows(coe: Coe) -> None:
    batches = Batches(coe, step_s=30.0)
    process = batches.start()
    eventually((batches.faults / "pids").exists)
    interrupt(process)
    assert process.stderr is not None
    assert any(b"once more drops them" in line for line in process.stderr)
    interrupt(process)
    _, error = process.communicate(timeout=200)
    assert process.returncode == 130, error
    assert b"stopped: 0 of 200 rows are done" in error


@pytest.mark.skipif(WINDOWS, reason="a name that POSIX systems have for a pipe")
def test_a_pipe_that_is_named_as_the_output_gets_the_answers(quick_coe: Coe) -> None:
    source = write_rows(quick_coe.folder / "in.jsonl", [{"prompt": "Hi", **SHORT, "max_tokens": 2}])
    process = quick_coe.start("batch", str(source), "-o", "/dev/stdout", "-q")
    answers, error = process.communicate(timeout=200)
    assert process.returncode == 0, error
    assert json.loads(answers)["line"] == 1


def test_stdin_is_kept_beside_the_output_so_that_it_can_go_on(quick_coe: Coe) -> None:
    rows = [{"prompt": f"Name {number}", **SHORT, "max_tokens": 2} for number in range(3)]
    source, out = write_rows(quick_coe.folder / "in.jsonl", rows), quick_coe.folder / "out.jsonl"
    quick_coe.run("batch", "-", "-o", str(out), "-q", stdin=source.read_bytes()).check()
    assert sorted(by_line(out)) == [1, 2, 3]
    assert not (quick_coe.folder / "out.jsonl.batch" / "input.jsonl").exists(), "it is not needed any more"
    again = quick_coe.run("batch", "-", "-o", str(out), stdin=source.read_bytes()).check()
    assert one_line(again.stderr) == "coe: all 3 rows are in the output already"
    other = quick_coe.run("batch", "-", "-o", str(out), stdin=b'{"prompt": "x"}\n')
    assert other.code == 2 and "the input has changed" in one_line(other.stderr)
    anew = quick_coe.run("batch", "-", "-o", str(out), "--restart", "-q", stdin=json.dumps(rows[0]).encode()).check()
    assert (sorted(by_line(out)), anew.stdout) == ([1], "")


# --- slow


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_kills_of_a_real_batch_change_nothing(coe: Coe) -> None:
    """The real model, sampled with seeds: ten kills, as it starts and between rows, then the answers of an undisturbed run."""
    rows = [
        {"id": number, "prompt": f"Write a sentence about the number {number}.", "model": MODEL, "max_tokens": 12}
        | ({"temperature": 0.8, "seed": number} if number % 2 else {"temperature": 0})
        for number in range(40)
    ]
    source = write_rows(coe.folder / "in.jsonl", rows)
    calm, out = coe.folder / "calm.jsonl", coe.folder / "out.jsonl"
    coe.run("batch", str(source), "-o", str(calm)).check()

    def written() -> int:
        return out.read_bytes().count(b"\n") if out.exists() else 0

    def reached(lines: int, process: subprocess.Popen[bytes]) -> bool:
        return written() >= lines or process.poll() is not None

    chance, moments = random.Random(4), [0]
    for more in chance.sample([0, 0, 1, 1, 2, 3, 3, 4, 5, 6], 10):
        process = coe.start("batch", str(source), "-o", str(out))
        eventually(partial(reached, moments[-1] + more, process))
        time.sleep(chance.uniform(0.0, 1.0 if more == 0 else 0.2))
        process.kill()
        process.wait()
        moments.append(written())
    coe.run("batch", str(source), "-o", str(out)).check()
    print("rows in the output after each kill:", moments)
    assert {line: row["answer"] for line, row in by_line(out).items()} == {
        line: row["answer"] for line, row in by_line(calm).items()
    }
    assert moments == sorted(moments)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("options", [[], ["--keep-order"]])
def test_a_hundred_thousand_rows_need_little_memory(coe: Coe, options: list[str]) -> None:
    """Two hundred megabytes of prompts; the peak of the process, imports and all, stays far below."""
    batches = Batches(coe, rows=0, step_s=0.0)
    padding = "x" * 2000
    with batches.source.open("w") as file:
        for number in range(1, 100_001):
            row = {"id": f"r{number}", "prompt": f"{padding} {number}", "model": MODEL, "max_tokens": 1, "seed": 1}
            file.write(json.dumps(row) + "\n")
    begin = time.monotonic()
    process = batches.start(*options)
    peak_kb = 0
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        peak_kb = max([peak_kb, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))])
        time.sleep(0.5)
    error = process.communicate()[1]
    print(f"{time.monotonic() - begin:.0f} s, peak {peak_kb / 1024:.0f} MB", error.decode().splitlines()[-1])
    assert process.returncode == 0, error.decode()[-500:]
    assert batches.written() == 100_000
    assert peak_kb < 200 * 1024


def test_its_help_is_light() -> None:
    code = "import sys; from coe_cli.app import run; run(['batch', '--help']); sys.exit(any(m in sys.modules for m in ('rich', 'pydantic', 'numpy', 'coe_cli.runtime.college.college')))"  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment).returncode == 0
