"""One budget for the college and a batch: who gives way, what is claimed, and that both stay below it, with real processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from college_trial import run, trial
from conftest import ENDLESS, MODEL, REPOSITORY, Coe, copy_model, eventually, one_line, workers_of
from hypothesis import given
from hypothesis import strategies as st
from serving import Served, serving

from coe_cli.core.college_status import ModelLine
from coe_cli.core.scheduler_events import Elsewhere
from coe_cli.core.scheduler_state import ModelCost
from coe_cli.core.sharing import Share, WorkingSet, share, working_set
from coe_cli.runtime.server.claims import Claim, OwnClaim, claimed_mb, claims

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


# --- who gives way


def line(name: str, mb: int, *, idle_s: float | None = 1.0, running: int = 0, waiting: int = 0) -> ModelLine:
    return ModelLine(name, 1, "ready", running, 2, waiting, 1024, mb, None, idle_s, 0, mb)


OLD, NEW, BUSY = line("old", 300, idle_s=60.0), line("new", 300), line("busy", 300, idle_s=None, running=1)
WANTED_FOR = line("wanted", 300, waiting=1)


@pytest.mark.parametrize(
    ("wanted_mb", "models", "claimed_mb", "expected"),
    [
        (500, [], 0, Share([], 0, 950)),
        (500, [OLD], 0, Share([], 300, 600)),
        (601, [OLD], 0, Share(["old"], 0, 950)),
        (500, [OLD, NEW], 0, Share(["old"], 300, 600)),
        (700, [NEW, OLD], 0, Share(["old", "new"], 0, 950)),
        (700, [OLD, BUSY], 0, Share(["old"], 300, 600)),
        (700, [WANTED_FOR, BUSY], 0, Share([], 600, 300)),
        (100, [OLD, NEW, BUSY], 0, Share(["old"], 600, 300)),
        (800, [], 400, Share([], 400, 500)),
        (300, [line("small", 10, idle_s=99.0), OLD], 400, Share(["old"], 410, 490)),
        (800, [BUSY], 700, Share([], 1000, 0)),
        (800, [BUSY, OLD], 520, Share([], 1120, 0)),
    ],
)
def test_idle_models_give_way_and_no_more_than_is_of_use(
    wanted_mb: float, models: list[ModelLine], claimed_mb: float, expected: Share
) -> None:
    assert share(WorkingSet(100, wanted_mb), models, claimed_mb, high_mb=900, critical_mb=950) == expected


@pytest.mark.parametrize(
    ("college_pool_mb", "batch_pool_mb", "college_mb", "room_mb"),
    [(1000, 1000, 300, 600), (500, 1000, 300, 600), (2000, 1000, 300, 950), (2000, 1000, 1200, 700)],
)
def test_with_two_budgets_both_stay_within_the_larger_one(
    college_pool_mb: int, batch_pool_mb: int, college_mb: int, room_mb: int
) -> None:
    """Each counts of the other what the other cannot have of its own larger budget."""
    models = [line("busy", college_mb, idle_s=None, running=1)]
    beyond_mb = max(0, college_pool_mb - batch_pool_mb)
    limits = {"high_mb": 0.9 * batch_pool_mb, "critical_mb": 0.95 * batch_pool_mb}
    part = share(WorkingSet(100, 950), models, 0, beyond_mb=beyond_mb, **limits)
    assert part.room_mb == room_mb
    assert college_mb + part.room_mb <= max(college_pool_mb, batch_pool_mb)
    seen_mb = claimed_mb([Claim(7, "a batch", "cpu", part.room_mb, batch_pool_mb)], college_pool_mb)
    assert college_mb + seen_mb <= college_pool_mb, "what the college is at work with would be evicted"


@given(
    least_mb=st.integers(1, 950),
    wanted_mb=st.integers(1, 950),
    claimed_mb=st.sampled_from([0, 0, 200, 900]),
    sizes=st.lists(st.tuples(st.integers(1, 500), st.sampled_from([None, 0.0, 5.0, 600.0])), max_size=5),
)
def test_nothing_at_work_is_unloaded_and_all_stay_within_the_pool(
    least_mb: int, wanted_mb: int, claimed_mb: int, sizes: list[tuple[int, float | None]]
) -> None:
    models = [line(f"m{n}", mb, idle_s=idle, running=int(idle is None)) for n, (mb, idle) in enumerate(sizes)]
    idle = {model.name for model in models if model.idle_s is not None}
    least_mb = min(least_mb, wanted_mb)
    part = share(WorkingSet(least_mb, wanted_mb), models, claimed_mb, high_mb=900, critical_mb=950)
    assert set(part.unload) <= idle
    kept_mb = claimed_mb + sum(model.held_mb for model in models if model.name not in part.unload)
    assert part.kept_mb == kept_mb
    assert not part.room_mb or part.room_mb + kept_mb <= (900 if kept_mb else 950)
    at_work_mb = claimed_mb + sum(model.held_mb for model in models if model.name not in idle)
    most_mb = max(0, (900 if at_work_mb else 950) - at_work_mb)
    if part.room_mb < wanted_mb:
        assert part.room_mb == most_mb or most_mb < least_mb, "what is idle keeps room that the batch could use"
    if most_mb < least_mb:
        assert not part.unload, "it makes no room that is of use"


@pytest.mark.parametrize(
    ("needs_mb", "workers", "expected"),
    [
        ([], 1, WorkingSet(0, 0)),
        ([400], 1, WorkingSet(400, 500)),
        ([200, 100], 1, WorkingSet(200, 375)),
        ([100, 100, 100, 100], 1, WorkingSet(100, 250)),
        ([200], 2, WorkingSet(200, 500)),
        ([100, 200], 2, WorkingSet(200, 375)),
        ([940], 1, WorkingSet(940, 950)),
        ([2000, 100], 1, WorkingSet(100, 125)),
        ([2000], 1, WorkingSet(0, 0)),
    ],
)
def test_a_batch_wants_what_is_at_work_and_the_next_model(
    needs_mb: list[int], workers: int, expected: WorkingSet
) -> None:
    costs = {f"m{number}": ModelCost(mb - 50, 40, 10) for number, mb in enumerate(needs_mb)}
    assert working_set(costs, workers, 1, 950) == expected


# --- claims


def test_a_claim_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    own = OwnClaim(tmp_path, "this one", "cpu")
    own.set(10)
    assert claims(tmp_path, "cpu") == [], "one's own does not count"
    code = (
        "import sys, pathlib; from coe_cli.runtime.server.claims import OwnClaim\n"
        "own = OwnClaim(pathlib.Path(sys.argv[1]), 'a batch', 'cpu'); own.set(300); own.set(200)\n"
        "print('set', flush=True); sys.stdin.read(); own.close(); print('closed', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "cwd": REPOSITORY}
    with subprocess.Popen(command, **pipes) as killed, subprocess.Popen(command, **pipes) as closed:
        for process in (killed, closed):
            assert process.stdout is not None and process.stdout.readline().split() == [b"set"]
        there = claims(tmp_path, "cpu")
        assert sorted(there, key=lambda claim: claim.pid) == sorted(
            [Claim(process.pid, "a batch", "cpu", 200) for process in (killed, closed)], key=lambda claim: claim.pid
        )
        assert claims(tmp_path, "cuda") == [], "another device's memory is no matter"
        killed.kill()
        killed.wait()
        assert [claim.pid for claim in claims(tmp_path, "cpu")] == [closed.pid]
        assert closed.stdin is not None and closed.stdout is not None
        closed.stdin.close()
        assert closed.stdout.readline().split() == [b"closed"]
    assert claims(tmp_path, "cpu") == []
    own.close()
    assert list((tmp_path / "claims").iterdir()) == []


def test_a_college_loads_nothing_into_what_another_process_claims(tmp_path: Path) -> None:
    """Its resident models go on; what it may not load is refused with the reason, and loaded once the claim has ended."""

    async def test() -> None:
        claimed = Elsewhere(0.0)
        async with trial(tmp_path, elsewhere=lambda: claimed) as college:
            assert (await college.ask("one")).right
            claimed = Elsewhere(780.0, "`coe batch` (process 7)")
            assert (await college.ask("one")).right
            college.changed["two"] = 200
            refused = await college.ask("two")
            assert refused.error is not None and refused.error.exit_code == 6
            assert "taken by `coe batch` (process 7)" in refused.error.message
            now = college.college.snapshot()
            assert (now.elsewhere_mb, now.elsewhere_by) == (780.0, "`coe batch` (process 7)")
            assert [model.state for model in now.models] == ["ready", "absent"]
            claimed = Elsewhere(0.0)
            assert (await college.ask("two")).right

    run(test)


# --- a batch beside a college, with real models


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
        for child in workers_of(psutil.Process(parent)) if psutil.pid_exists(parent) else []:
            try:
                total += child.memory_info().rss / 2**20
            except psutil.Error:
                continue
    return total


def answered(path: Path) -> int:
    return sum("answer" in json.loads(line) for line in path.read_text().splitlines())


@contextlib.contextmanager
def stories(served: Served) -> Iterator[None]:
    """The college is at work with a long answer, and others wait for their turn."""
    body = {"model": ONE, "messages": [{"role": "user", "content": ENDLESS}], "stream": True, "temperature": 0}
    with contextlib.ExitStack() as open_ones:
        for _ in range(6):
            connection = open_ones.enter_context(contextlib.closing(served.connect()))
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        eventually(lambda: served.snapshot()["queue_length"] == 5 and served.snapshot()["models"][0]["running"])
        yield


def test_an_idle_model_of_the_college_makes_room_and_the_budget_holds(home: Coe) -> None:
    with serving(home) as served:
        assert served.chat(model=ONE, max_tokens=2).status == 200
        out = home.folder / "out.jsonl"
        process = home.start("batch", str(rows(home)), "-o", str(out))
        peak_mb = 0.0
        while process.poll() is None:
            peak_mb = max(peak_mb, workers_mb(served.process.pid, process.pid))
        said = process.communicate()[1].decode()
        assert process.returncode == 0, said
        assert answered(out) == 4
        assert 200 < peak_mb <= BUDGET_MB, "the college and the batch together"
        notes = [text for text in said.splitlines() if "college" in text]
        assert len(notes) == 1 and "takes out `one`, idle" in notes[0]
        assert served.status()["models"] == []
        assert served.chat(model=ONE, max_tokens=2).status == 200, "afterwards the college has the room again"


def test_a_model_at_work_is_left_alone_and_waited_for(home: Coe) -> None:
    with serving(home) as served:
        out = home.folder / "out.jsonl"
        with stories(served):
            process = home.start("batch", str(rows(home)), "-o", str(out))
            assert process.stderr is not None
            said = process.stderr.readline().decode()
            assert "waiting for" in said and "the running college keeps" in said and "`one`" in said
            assert "coe stop" in said
            assert [model["running"] for model in served.snapshot()["models"]] == [1]
            assert out.read_text() == ""
        said = process.communicate(timeout=100)[1].decode()
        assert process.returncode == 0, said
        assert answered(out) == 4


def test_a_second_batch_waits_for_the_first(home: Coe) -> None:
    first = OwnClaim(home.folder / "state", "`coe batch` (process 7)", "cpu", BUDGET_MB)
    first.set(300)
    process = home.start("batch", str(rows(home, 1, 4)), "-o", str(home.folder / "out.jsonl"))
    assert process.stderr is not None
    said = process.stderr.readline().decode()
    assert "waiting for" in said and "`coe batch` (process 7) has claimed 300 MB" in said and "coe stop" not in said
    first.close()
    assert process.wait(60) == 0
    assert answered(home.folder / "out.jsonl") == 1


def test_waiting_ends_with_ctrl_c(home: Coe) -> None:
    with serving(home) as served, stories(served):
        process = home.start("batch", str(rows(home)), "-o", str(home.folder / "out.jsonl"))
        assert process.stderr is not None and b"waiting for" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=20)[1].decode()
        assert process.returncode == 130 and "Go on with: coe batch" in said


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


def test_both_stay_where_there_is_room_and_a_killed_batch_gives_it_back(home: Coe) -> None:
    with serving(home, "-p", "large") as served:
        assert served.chat(model=ONE, max_tokens=2).status == 200
        process = home.start("batch", str(rows(home, 8, 400)), "-p", "large", "-o", str(home.folder / "out.jsonl"))
        elsewhere = eventually(lambda: (now := served.snapshot()) and now["elsewhere_mb"] and now)
        assert elsewhere["elsewhere_by"] == f"`coe batch` (process {process.pid})"
        assert (
            f"{elsewhere['elsewhere_mb']:.0f} MB" in (table := home.run("ps").check().stdout) and "coe batch" in table
        )
        assert [model["name"] for model in elsewhere["models"]] == [ONE]
        os.kill(process.pid, signal.SIGKILL)
        said = process.communicate()[1].decode()
        assert "college" not in said
        assert served.snapshot()["elsewhere_mb"] == 0
