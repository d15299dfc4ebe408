"""The college with real processes that misbehave: what becomes of the answers, the processes and the memory."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest
from college_trial import SLOT_MB, WEIGHTS_MB, FakeProbe, Trial, run, trial
from operating_system import SYSTEM_ENDED_IT, WINDOWS, kill

from coe_cli.errors import Draining, ModelDamaged
from coe_cli.runtime.college import college_events as ce


def test_an_answer_and_what_stays(tmp_path: Path) -> None:
    async def test() -> None:
        async with trial(tmp_path) as college:
            first = await college.ask()
            again = await college.ask()
            assert first.right and again.right
            assert first.count(ce.Loading) == 1 and again.count(ce.Loading) == 0
            assert college.starts("one") == 1
            await college.settled()

    run(test)


def test_several_at_once_on_one_worker(tmp_path: Path) -> None:
    async def test() -> None:
        async with trial(tmp_path) as college:
            answers = await asyncio.gather(*(college.ask(tokens=30, seed=seed) for seed in range(12)))
            assert all(answer.right for answer in answers)
            assert college.starts("one") == 1
            await college.settled()

    run(test)


# --- loads that fail


@pytest.mark.parametrize("fault", [{"load": "crash"}, {"load": "hang"}, {"before": "Welcome to the driver!\n"}])
def test_a_load_that_fails_is_tried_once_more(tmp_path: Path, fault: dict[str, str]) -> None:
    async def test() -> None:
        async with trial(tmp_path, {"one": [fault, {}]}, skips_hangs=True) as college:
            assert (await college.ask()).right
            assert college.starts("one") == 2
            await college.settled()

    run(test)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"load": "crash"}, "ended with code 41: faulty_worker: crashed as asked"),
        ({"load": "hang"}, "did not load within "),
        ({"before": "Welcome to the driver!\n"}, "wrote something else than the protocol"),
        ({"before": "\x00\x00\x00\x07Welcome"}, "wrote something else than the protocol"),
        ({"version": 99}, "speaks protocol 99"),
    ],
)
def test_a_load_that_keeps_failing_is_a_lost_device(tmp_path: Path, fault: dict[str, str], said: str) -> None:
    async def test() -> None:
        async with trial(tmp_path, {"one": [fault]}, skips_hangs=True) as college:
            first, second = await asyncio.gather(college.ask(), college.ask())
            for answer in (first, second):
                assert answer.error is not None and answer.error.exit_code == 7
                assert said in answer.error.message
                assert answer.text == ""
            assert college.starts("one") == 2
            await college.settled()
            assert college.college.snapshot().reserved_mb == 0

    run(test)


def test_a_damaged_model_is_not_loaded_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with trial(tmp_path, {"one": [{"load": "damaged"}]}) as college:
            answer = await college.ask()
            assert isinstance(answer.error, ModelDamaged)
            assert college.starts("one") == 1
            await college.settled()

    run(test)


def test_a_command_that_cannot_be_started(tmp_path: Path) -> None:
    async def test() -> None:
        async with trial(tmp_path) as college:
            college.college._settings.worker_command[:] = [str(tmp_path / "missing")]  # type: ignore[index]
            answer = await college.ask()
            assert answer.error is not None and answer.error.exit_code == 7
            assert f"{tmp_path / 'missing'}: " in answer.error.message and "Errno" not in answer.error.message
            await college.settled()

    run(test)


def test_out_of_memory_on_load_evicts_the_idle_and_loads_once_more(tmp_path: Path) -> None:
    async def test() -> None:
        async with trial(tmp_path, {"two": [{"load": "oom"}, {}]}) as college:
            assert (await college.ask("one")).right
            assert (await college.ask("two")).right
            assert college.starts("two") == 2
            assert set(college.college.workers()) == {"two"}
            await college.settled()

    run(test)


def test_out_of_memory_on_every_load_is_an_error(tmp_path: Path) -> None:
    async def test() -> None:
        async with trial(tmp_path, {"two": [{"load": "oom"}]}) as college:
            assert (await college.ask("one")).right
            answer = await college.ask("two")
            assert answer.error is not None and answer.error.exit_code == 6
            assert college.starts("two") == 2
            assert set(college.college.workers()) == set()
            await college.settled()
            assert (await college.ask("one")).right, "the college goes on"

    run(test)


# --- workers that are lost in mid-answer


@pytest.mark.parametrize("kind", ["device_lost", "oom", "hang", "crash", "garbage"])
def test_lost_before_the_first_token_is_asked_again(tmp_path: Path, kind: str) -> None:
    async def test() -> None:
        async with trial(tmp_path, {"one": [{"answer": kind}, {}]}, skips_hangs=True) as college:
            answers = await asyncio.gather(college.ask(), college.ask())
            assert all(answer.right for answer in answers)
            assert [answer.count(ce.Restarted) for answer in answers] == [1, 1]
            assert college.starts("one") == 2
            await college.settled()

    run(test)


@pytest.mark.parametrize(("kind", "code"), [("device_lost", 7), ("oom", 6), ("hang", 7), ("crash", 7), ("garbage", 7)])
def test_lost_after_the_first_token_is_an_error(tmp_path: Path, kind: str, code: int) -> None:
    async def test() -> None:
        faults = {"one": [{"answer": kind, "after": 3}, {}]}
        async with trial(tmp_path, faults, skips_hangs=True) as college:
            answer = await college.ask()
            assert answer.error is not None and answer.error.exit_code == code
            assert answer.error.message and answer.error.hint
            assert len(answer.text.split()) == 3
            assert (await college.ask()).right, "the worker was replaced"
            assert college.starts("one") == 2
            await college.settled()

    run(test)


@pytest.mark.parametrize(("kind", "code"), [("device_lost", 7), ("oom", 6), ("hang", 7), ("crash", 7)])
def test_it_is_asked_again_only_once(tmp_path: Path, kind: str, code: int) -> None:
    async def test() -> None:
        async with trial(tmp_path, {"one": [{"answer": kind}]}, skips_hangs=True) as college:
            answer = await college.ask()
            assert answer.error is not None and answer.error.exit_code == code
            assert answer.text == "" and answer.count(ce.Restarted) == 1
            assert college.starts("one") == 2
            await college.settled()

    run(test)


@pytest.mark.parametrize("kind", ["device_lost", "oom", "hang", "crash", "garbage"])
def test_an_answer_that_is_wanted_whole_is_asked_again_in_mid_answer(tmp_path: Path, kind: str) -> None:
    async def test() -> None:
        faults = {"one": [{"answer": kind, "after": 3}, {}]}
        async with trial(tmp_path, faults, skips_hangs=True) as college:
            answer = await college.ask(buffered=True)
            assert answer.right and answer.count(ce.Restarted) == 1
            pieces = [event for event in answer.events if isinstance(event, ce.Delta)]
            assert [piece.text for piece in pieces if piece.text] == [answer.text], "no text before the end"
            assert sum(piece.tokens for piece in pieces) == 3 + 8, "signs of life, of the broken attempt too"
            assert college.starts("one") == 2
            await college.settled()

    run(test)


def test_only_those_with_text_fail_when_a_worker_dies(tmp_path: Path) -> None:
    async def test() -> None:
        async with trial(tmp_path, {"one": [{"answer": "crash", "after": 1}, {}]}) as college:
            answers = await asyncio.gather(college.ask(), college.ask(), college.ask())
            assert sorted(answer.right for answer in answers) == [False, True, True]
            assert [len(a.text.split()) for a in answers if not a.right] == [1]
            await college.settled()

    run(test)


def test_one_model_lost_leaves_the_other_alone(tmp_path: Path) -> None:
    async def test() -> None:
        faults: dict[str, list[dict[str, Any]]] = {
            "one": [{"answer": "device_lost", "after": 5}],
            "two": [{"step_s": 0.01}],
        }
        async with trial(tmp_path, faults) as college:
            one, two = await asyncio.gather(college.ask("one"), college.ask("two", tokens=60))
            assert one.error is not None and two.right
            await college.settled()

    run(test)


def test_an_idle_worker_that_is_killed_is_replaced(tmp_path: Path) -> None:
    async def test() -> None:
        async with trial(tmp_path) as college:
            assert (await college.ask()).right
            ((pid, _, _),) = college.college.workers().values()
            kill(pid)
            while college.college.workers():
                await asyncio.sleep(0.01)
            assert (await college.ask()).right
            assert college.starts("one") == 2
            await college.settled()

    run(test)


def test_a_model_whose_files_have_changed_is_loaded_anew_when_idle(tmp_path: Path) -> None:
    async def test() -> None:
        async with trial(tmp_path) as college:
            assert (await college.ask()).right
            college.changed["one"] = 120
            assert (await college.ask()).right
            assert college.starts("one") == 2
            assert college.college.snapshot().models[0].reserved_mb == 120

    run(test)


# --- the warm worker


async def _warm_pid(college: Trial) -> int:
    """The process that has no model, once there is one."""
    while True:
        loaded = {pid for pid, _, _ in college.college.workers().values()}
        free = [pid for pid in college.living() if pid not in loaded]
        if free and college.college._warm_worker.there:
            return free[-1]
        await asyncio.sleep(0.01)


def test_after_the_second_load_a_process_is_ready_for_the_next(tmp_path: Path) -> None:
    async def test() -> None:
        async with trial(tmp_path, keep_warm_worker=True, vram_budget_mb=120) as college:
            assert (await college.ask("one")).right
            await asyncio.sleep(0.3)
            assert len(college.living()) == 1, "who asks one model only pays for none"
            assert (await college.ask("two")).right
            warm = await _warm_pid(college)
            assert (await college.ask("one")).right
            assert [pid for pid, _, _ in college.college.workers().values()] == [warm]
            kill(await _warm_pid(college))
            assert (await college.ask("two")).right, "a warm worker that was killed is no loss"
            await _warm_pid(college)
            await college.settled()

    run(test)


@pytest.mark.long
def test_warm_workers_among_kills(tmp_path: Path) -> None:
    async def test() -> None:
        async with trial(tmp_path, keep_warm_worker=True, vram_budget_mb=120, retry_delay_s=0.01) as college:
            chance = random.Random(4)
            for number in range(12):
                answer = await college.ask("one" if number % 2 else "two", buffered=True)
                assert answer.right or (answer.error is not None and answer.error.exit_code == 7)
                for pid in college.living():
                    if chance.random() < 0.5:
                        with contextlib.suppress(ProcessLookupError):
                            kill(pid)
            await college.settled()

    run(test)


# --- cancelling and ending


def test_a_reader_that_leaves_frees_its_slot(tmp_path: Path) -> None:
    async def test() -> None:
        async with trial(tmp_path, {"one": [{"step_s": 0.01}]}, max_concurrent_slots=1) as college:
            task = asyncio.create_task(college.ask(tokens=10_000))
            while college.college.snapshot().running == 0:
                await asyncio.sleep(0.01)
            waiting = asyncio.create_task(college.ask())
            await asyncio.sleep(0.05)
            task.cancel()
            assert (await waiting).right
            assert college.starts("one") == 1
            await college.settled()

    run(test)


def test_a_reader_that_leaves_in_mid_load(tmp_path: Path) -> None:
    async def test() -> None:
        async with trial(tmp_path, {"one": [{"load_s": 0.3}]}) as college:
            task = asyncio.create_task(college.ask())
            await asyncio.sleep(0.2)
            task.cancel()
            assert (await college.ask()).right
            assert college.starts("one") == 1
            await college.settled()

    run(test)


def test_closing_ends_requests_and_workers_in_every_state(tmp_path: Path) -> None:
    async def test() -> None:
        faults: dict[str, list[dict[str, Any]]] = {"one": [{"step_s": 0.01}], "two": [{"load": "hang"}]}
        async with trial(tmp_path, faults, max_concurrent_slots=1) as college:
            running = asyncio.create_task(college.ask("one", tokens=10_000))
            while college.college.snapshot().running == 0:
                await asyncio.sleep(0.01)
            queued = asyncio.create_task(college.ask("one"))
            loading = asyncio.create_task(college.ask("two"))
            while college.starts("two") == 0:
                await asyncio.sleep(0.01)
            await college.college.close()
            for answer in await asyncio.gather(running, queued, loading):
                assert isinstance(answer.error, Draining)
            late = await college.ask("one")
            assert isinstance(late.error, Draining), "a closed college starts nothing"
            assert college.college.workers() == {}

    run(test)


def test_closing_at_the_moment_of_the_first_question(tmp_path: Path) -> None:
    async def test() -> None:
        async with trial(tmp_path) as college:
            task = asyncio.create_task(college.ask())
            await asyncio.sleep(0)
            await college.college.close()
            assert isinstance((await task).error, Draining)

    run(test)


children_stay = pytest.mark.skipif(WINDOWS, reason="what a worker has started there ends with the college, by its job")


@children_stay
def test_a_worker_that_ignores_sigterm_and_leaves_a_child_is_ended(tmp_path: Path) -> None:
    async def test() -> None:
        async with trial(tmp_path, {"one": [{"stubborn": True}]}) as college:
            assert (await college.ask()).right
            await college.college.close()

    run(test)


@children_stay
def test_a_worker_whose_child_holds_the_channel_open_is_noticed_when_it_dies(tmp_path: Path) -> None:
    async def test() -> None:
        faults = {"one": [{"stubborn": True, "answer": "crash", "after": 2}, {}]}
        async with trial(tmp_path, faults) as college:
            answer = await college.ask()
            assert answer.error is not None and answer.error.exit_code == 7
            assert (await college.ask()).right
            await college.settled()

    run(test)


# --- memory


def test_two_models_take_turns_in_a_budget_for_one(tmp_path: Path) -> None:
    async def test() -> None:
        memory_probe = FakeProbe()
        async with trial(tmp_path, memory_probe=memory_probe, vram_budget_mb=120) as college:
            for number in range(6):
                assert (await college.ask("one" if number % 2 else "two")).right
            assert college.starts("one") == college.starts("two") == 3
            await college.settled()
        assert memory_probe.peak_mb <= 120

    run(test)


def test_questions_to_both_at_once_in_a_budget_for_one(tmp_path: Path) -> None:
    async def test() -> None:
        memory_probe = FakeProbe()
        async with trial(tmp_path, memory_probe=memory_probe, vram_budget_mb=140) as college:
            answers = await asyncio.gather(*(college.ask(name, seed=n) for n in range(8) for name in ("one", "two")))
            assert all(answer.right for answer in answers)
            assert college.starts("one") + college.starts("two") <= 8
            await college.settled()
        assert memory_probe.peak_mb <= 140

    run(test)


def test_memory_that_does_not_come_back_is_kept_out_of_the_budget(tmp_path: Path) -> None:
    class Leaky(FakeProbe):
        def used_mb(self, pids: Iterable[int]) -> float | None:
            used_mb = super().used_mb(pids)
            return used_mb if used_mb is None else max(used_mb, self.worker_mb)

    async def test() -> None:
        async with trial(tmp_path, memory_probe=Leaky(), vram_budget_mb=250) as college:
            assert (await college.ask()).right
            college.college.unload("one")
            await college.settled()
            now = college.college.snapshot()
            assert now.lost_mb == pytest.approx(WEIGHTS_MB + SLOT_MB)
            assert any("reclaimed 0 of 110 MB" in notice for notice in college.college.notices)
            assert (await college.ask("two")).right, "what is left is enough for one"

    run(test)


def test_memory_that_comes_back_late_is_waited_for(tmp_path: Path) -> None:
    class Slow(FakeProbe):
        """What a process held is in use for half a second after its end, as with some drivers."""

        def __init__(self) -> None:
            super().__init__()
            self._seen: dict[int, float] = {}

        def used_mb(self, pids: Iterable[int]) -> float | None:
            now = time.monotonic()
            self._seen.update(dict.fromkeys(pids, now))
            return super().used_mb([pid for pid, seen in self._seen.items() if now - seen < 0.5])

    async def test() -> None:
        memory_probe = Slow()
        async with trial(tmp_path, memory_probe=memory_probe, vram_budget_mb=120) as college:
            for name in ("one", "two", "one"):
                assert (await college.ask(name)).right
            assert college.college.snapshot().lost_mb == 0
            assert not college.college.notices or all("reclaimed" not in text for text in college.college.notices)
            await college.settled()
        assert memory_probe.peak_mb <= 120

    run(test)


def test_another_program_takes_the_memory(tmp_path: Path) -> None:
    async def test() -> None:
        memory_probe = FakeProbe()
        memory_probe.other_mb = 950.0
        async with trial(tmp_path, memory_probe=memory_probe) as college:
            college.college.snapshot()
            answer = await college.ask()
            assert answer.error is not None and answer.error.exit_code == 6
            assert "taken by other programs" in answer.error.message
            memory_probe.other_mb = 0.0
            college.college.snapshot()
            assert (await college.ask()).right
            await college.settled()

    run(test)


def test_another_program_takes_the_memory_in_mid_answer(tmp_path: Path) -> None:
    """Critical pressure evicts the largest consumer; what had delivered text fails, the rest is asked again."""

    async def test() -> None:
        memory_probe = FakeProbe()
        async with trial(tmp_path, {"one": [{"step_s": 0.02}, {}]}, memory_probe=memory_probe) as college:
            writing = asyncio.create_task(college.ask(tokens=10_000))
            while not (college.asked and college.asked[0].text):
                await asyncio.sleep(0.01)
            memory_probe.other_mb = 880.0
            college.college.snapshot()
            answer = await writing
            assert answer.error is not None and answer.error.exit_code == 6
            memory_probe.other_mb = 0.0
            assert (await college.ask()).right
            await college.settled()

    run(test)


# --- everything at once


SPARED_AFTER = 3
"""So many processes of a model are killed in a row before one of it gives a whole answer, however fast the machine."""


class Storm:
    """Kills a random process of the college again and again, for ``seconds`` and ten times at least."""

    def __init__(self, college: Trial, seconds: float, chance: random.Random) -> None:
        self._college, self._seconds, self._chance = college, seconds, chance
        self._in_a_row = Counter[str]()
        self.killed = set[int]()
        self.good = {True: 0, False: 0}
        """Complete answers, by whether they came whole or were read along."""

    def answered(self, model: str, *, whole: bool) -> None:
        self._in_a_row[model] = 0
        self.good[whole] += 1

    async def rage(self) -> None:
        end = time.monotonic() + self._seconds
        while time.monotonic() < end or len(self.killed) < 10 or not all(self.good.values()):
            await asyncio.sleep(self._chance.uniform(0.02, 0.4))
            workers = self._college.college.workers().items()
            there = [(name, pid) for name, (pid, _, _) in workers if self._in_a_row[name] < SPARED_AFTER]
            if there:
                name, pid = self._chance.choice(there)
                with contextlib.suppress(ProcessLookupError):  # it ended by itself meanwhile
                    kill(pid)
                    self._in_a_row[name] += pid not in self.killed
                    self.killed.add(pid)


@pytest.mark.parametrize(
    ("seed", "seconds"),
    [
        (1, 2.0),
        pytest.param(2, 6.0, marks=pytest.mark.long),
        pytest.param(3, 60.0, marks=pytest.mark.slow),
    ],
)
def test_workers_killed_at_random(tmp_path: Path, seed: int, seconds: float) -> None:
    """32 clients, half of which read along: each answer is complete and the right one for its seed, or an error."""

    async def test() -> None:
        chance = random.Random(seed)
        faults = {"one": [{"step_s": 0.002, "load_s": 0.02}], "two": [{"step_s": 0.002, "load_s": 0.05}]}
        async with trial(tmp_path, faults, retry_delay_s=0.01, give_up_s=120.0) as college:
            storm = Storm(college, seconds, chance)
            raging = asyncio.create_task(storm.rage())
            errors: Counter[str] = Counter()

            async def client(number: int) -> None:
                whole = bool(number % 2)
                while not raging.done():
                    name = chance.choice(["one", "two"])
                    answer = await college.ask(name, tokens=chance.randint(1, 20), seed=number, buffered=whole)
                    assert answer.right or answer.error is not None
                    if answer.error is None:
                        storm.answered(name, whole=whole)
                    else:
                        assert answer.error.exit_code == 7
                        started = answer.count(ce.Restarted) + bool(answer.text)
                        assert started, "a request that never began does not pay for loads that others killed"
                        errors["after text" if answer.text else "killed twice"] += 1

            await asyncio.gather(*(client(number) for number in range(32)))
            await raging
            print(f"\n{seconds:g} s, {len(storm.killed)} kills: complete {storm.good[False]} read along and"
                  f" {storm.good[True]} whole; errors {dict(errors)}")  # fmt: skip
            assert (await college.ask("one")).right and (await college.ask("two")).right
            await college.settled()

    run(test)


def test_a_model_whose_every_load_is_killed_is_given_up(tmp_path: Path) -> None:
    async def test() -> None:
        later_s = 0.0
        faults = {"one": [{"load": "hang"}]}
        clock = lambda: time.monotonic() + later_s  # noqa: E731
        async with trial(tmp_path, faults, clock=clock, retry_delay_s=0.05, give_up_s=1000.0) as college:
            asked = [asyncio.create_task(college.ask()) for _ in range(3)]
            while not asked[0].done():
                await asyncio.sleep(0.05)
                later_s = 1000.0 if college.starts("one") > 3 else 0.0
                for pid in college.living():
                    with contextlib.suppress(ProcessLookupError):
                        kill(pid)
            for answer in await asyncio.gather(*asked):
                assert answer.error is not None and answer.error.exit_code == 7
                assert SYSTEM_ENDED_IT in answer.error.message
            assert college.starts("one") > 3
            await college.settled()

    run(test)


@pytest.mark.long
def test_2000_short_requests_do_not_grow_the_college(tmp_path: Path) -> None:
    async def test() -> None:
        async with trial(tmp_path, {"one": [{"step_s": 0}], "two": [{"step_s": 0}]}) as college:
            me = psutil.Process()

            async def some(count: int) -> None:
                for number in range(count // 4):
                    names = ["one", "two", "one", "two"]
                    answers = await asyncio.gather(*(college.ask(name, tokens=1 + number % 4) for name in names))
                    assert all(answer.right for answer in answers)

            await some(400)
            before = me.memory_info().rss
            await some(2000)
            assert me.memory_info().rss <= 1.05 * before
            await college.settled()

    run(test)
