"""One scheduler for a device: a batch is a client of the running college, or of one that it starts, with real models."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import MODEL, REPOSITORY, Coe, copy_model, eventually, is_gone, one_line, workers_of
from serving import Served, serving

from coe_cli.runtime.server.discovery import read_state

ONE, TWO = "one", "two"
BUDGET_MB = 500
PROFILE = f"""
default_profile: small
profiles:
  small: {{vram_budget_mb: {BUDGET_MB}, max_concurrent_slots: 1, context_length: 1024, provider: cpu}}
  large: {{vram_budget_mb: 2000, max_concurrent_slots: 1, context_length: 1024, provider: cpu}}
vram_components:
  fixed_overhead: {{bge_m3_embeddings: 0, system_overhead: 0, total: 0}}
"""


@pytest.fixture
def home(tmp_path: Path, models_dir: Path) -> Iterator[Coe]:
    runner = Coe(tmp_path, tmp_path / "models")
    for name in (ONE, TWO):
        copy_model(models_dir / MODEL, runner.models / name)
    (runner.config / "hardware_profiles.yaml").write_text(PROFILE)
    yield runner
    runner.end_all()


def rows(coe: Coe, count: int = 4, tokens: int = 24) -> Path:
    path = coe.folder / "in.jsonl"
    row = {"prompt": "Tell a story.", "model": TWO, "max_tokens": tokens, "temperature": 0}
    path.write_text((json.dumps(row) + "\n") * count)
    return path


def workers_mb(*parents: int) -> float:
    """Resident memory of all workers of these processes, in MB."""
    total = 0.0
    for parent in parents:
        with contextlib.suppress(psutil.Error, OSError):  # it has ended
            for child in workers_of(psutil.Process(parent)):
                with contextlib.suppress(psutil.Error, OSError):
                    total += child.memory_info().rss / 2**20
    return total


def answered(path: Path) -> int:
    """The answers that are there as whole lines."""
    whole = path.read_text().rpartition("\n")[0]
    return sum("answer" in json.loads(line) for line in whole.splitlines())


SHARED: dict[str, Any] = {"COE_NO_SERVE": "0"}


def college(coe: Coe) -> Served | None:
    """The college that the state file names."""
    state = read_state(coe.folder / "state")
    return Served(coe, state.url) if state is not None else None


def college_pid(coe: Coe) -> int | None:
    state = read_state(coe.folder / "state")
    return state.pid if state is not None else None


def batch(coe: Coe, name: str, *arguments: str, **count: int) -> Any:
    source = rows(coe, **count).rename(coe.folder / f"{name}.jsonl")
    return coe.start("batch", str(source), "-o", str(coe.folder / f"{name}.out"), *arguments, environment=SHARED)


def ended(process: Any) -> str:
    """What it said on stderr, once it has ended as it should."""
    said = process.communicate(timeout=150)[1].decode()
    assert process.returncode == 0, said
    return str(said)


@pytest.mark.long
def test_the_running_college_answers_the_rows_within_its_budget(home: Coe) -> None:
    with serving(home) as served:
        assert served.chat(model=ONE, max_tokens=2).status == 200
        process = batch(home, "a")
        peak_mb, own = 0.0, 0
        while process.poll() is None:
            time.sleep(0.02)  # these cores are the workers'
            peak_mb = max(peak_mb, workers_mb(served.process.pid))
            own += len(workers_of(psutil.Process(process.pid)))
        assert "college" not in ended(process)
        assert answered(home.folder / "a.out") == 4
        assert own == 0, "the models are the college's"
        assert 200 < peak_mb <= BUDGET_MB, "the idle model made room at once"
        assert served.chat(model=ONE, max_tokens=2).status == 200, "afterwards the college has the room again"


@pytest.mark.long
def test_whoever_asks_goes_before_the_rows(home: Coe) -> None:
    with serving(home) as served:
        process = batch(home, "a", count=12, tokens=60)
        eventually(lambda: (home.folder / "a.out").exists() and answered(home.folder / "a.out") >= 1)
        assert served.chat(model=TWO, max_tokens=2).status == 200
        assert answered(home.folder / "a.out") < 8, "it did not wait for the rows before it"
        ended(process)
        assert answered(home.folder / "a.out") == 12


@pytest.mark.long
def test_a_batch_starts_a_college_for_all_that_ends_with_it(home: Coe) -> None:
    process = batch(home, "a", count=8, tokens=60)
    served, pid = eventually(lambda: college(home)), college_pid(home)
    asked = json.loads(
        home.run("ask", "-m", TWO, "--max-tokens", "2", "--format", "json", "Hi", **SHARED).check().stdout
    )
    assert asked["usage"]["completion_tokens"] == 2
    assert process.poll() is None and college_pid(home) == pid is not None
    assert "/coe/ask" in served.request("GET", "/metrics").body.decode()
    ended(process)
    assert answered(home.folder / "a.out") == 8
    eventually(lambda: is_gone(pid))


@pytest.mark.long
def test_two_batches_have_one_college(home: Coe) -> None:
    processes = [batch(home, name, count=5, tokens=40) for name in ("a", "b")]
    pids, peak_mb = set(), 0.0
    while any(process.poll() is None for process in processes):
        time.sleep(0.02)
        if (pid := college_pid(home)) is not None:
            pids.add(pid)
            peak_mb = max(peak_mb, workers_mb(*pids))
    for process, name in zip(processes, ("a", "b"), strict=True):
        ended(process)
        assert answered(home.folder / f"{name}.out") == 5
    assert peak_mb <= BUDGET_MB
    assert 1 <= len(pids) <= 2, "one, and after it perhaps another"


@pytest.mark.long
def test_a_killed_batch_leaves_nothing_at_work(home: Coe) -> None:
    with serving(home) as served:
        process = batch(home, "a", count=8, tokens=400)
        eventually(lambda: any(line["running"] for line in served.snapshot()["models"]))
        psutil.Process(process.pid).kill()
        process.communicate()
        eventually(lambda: all(not line["running"] and not line["waiting"] for line in served.snapshot()["models"]))


def test_alone_it_runs_a_college_in_its_own_process(home: Coe) -> None:
    process = batch(home, "a", "--no-serve", count=4)
    eventually(lambda: workers_of(psutil.Process(process.pid)))
    assert college(home) is None
    ended(process)
    assert answered(home.folder / "a.out") == 4


@pytest.mark.long
def test_one_process_answers_beside_the_college_and_says_what_that_takes(home: Coe) -> None:
    with serving(home) as served:
        served.chat(model=ONE, max_tokens=2)
        ask = ("ask", "-m", TWO, "--max-tokens", "2", "--no-log", "Hi")
        said = one_line(home.run(*ask).check().stderr)
        assert said.startswith("coe: `two` takes ") and "the running college keeps" in said and "`one`" in said
        assert "500 MB of profile small" in said and "coe stop" in said
        chat = home.run("chat", "-m", TWO, "--max-tokens", "2", "--no-log", stdin="Hi\n").check()
        assert "`one`" in one_line(chat.stderr)
        assert home.run(*ask, "-p", "large").check().stderr == "", "there both fit"
        path = os.pathsep.join([str(REPOSITORY / "tests" / "failing_oga"), home.environment["PYTHONPATH"]])
        fault = {"kind": "oom", "times": 1, "prompt_tokens": 1, "tokens": 1, "folder": str(home.folder)}
        failed = home.run("models", "verify", TWO, PYTHONPATH=path, OGA_FAULT=json.dumps(fault))
        assert failed.code and "The running college keeps" in failed.stdout + failed.stderr


@pytest.mark.long
def test_a_college_that_was_started_for_a_batch_ends_when_the_batch_is_killed(home: Coe) -> None:
    """However the batch ends: its college would keep the memory for as long as any idle one."""
    process = batch(home, "killed", count=50, tokens=200)
    pid = eventually(lambda: college_pid(home))
    assert not is_gone(pid)
    process.kill()
    process.wait()
    eventually(lambda: is_gone(pid))
    assert college(home) is None
