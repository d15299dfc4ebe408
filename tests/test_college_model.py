"""The college with the real model: answers stay the same through kills, swaps and reuse of the cache."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import psutil
import pytest
from conftest import MODEL, command_of
from operating_system import kill

from coe_cli.core.memory.calibration import apply
from coe_cli.core.memory.footprint import ExactAccounting
from coe_cli.core.models.model_spec import ModelSpec
from coe_cli.core.scheduling.scheduler_state import pool_from_profile
from coe_cli.errors import CoeError
from coe_cli.runtime.college import college_events as ce
from coe_cli.runtime.college.calibration_recorder import CalibrationRecorder
from coe_cli.runtime.college.college import College
from coe_cli.runtime.college.college_settings import CollegeSettings
from coe_cli.runtime.college.costs import cost_in
from coe_cli.runtime.college.memory_probe import RssProbe
from coe_cli.runtime.folders import profile_paths
from coe_cli.runtime.model_folder.on_disk import spec_from_folder
from coe_cli.runtime.planning.calibration_store import CalibrationStore
from coe_cli.runtime.planning.plan_inputs import calibration_of, memory_of
from coe_cli.runtime.settings import load_profiles
from coe_cli.runtime.worker.protocol import ChatMessage, Sampling

GREEDY = Sampling(temperature=0)
SEEDED = Sampling(temperature=1.0, seed=11)
TOKENS = 12


def with_college(
    models_dir: Path,
    test: Callable[[College, ModelSpec], Awaitable[None]],
    *,
    slots: int = 2,
    context_length: int = 1024,
    budget_mb: int | None = None,
    recorder: CalibrationRecorder | None = None,
) -> None:
    """Run ``test`` with a college on the embedded model; afterwards no worker is left and no slot is taken."""

    async def main() -> None:
        profile = load_profiles(profile_paths()).select("embedded")
        profile = msgspec.structs.replace(profile, context_length=context_length, max_concurrent_slots=slots)
        pool = msgspec.structs.replace(
            pool_from_profile(profile), min_residency_s=0.0, retry_delay_s=0.1, max_concurrent_slots=slots
        )
        if budget_mb is not None:
            pool = msgspec.structs.replace(pool, vram_budget_mb=budget_mb + pool.fixed_mb)
        college = College(CollegeSettings(pool, cost_in(profile), recorder=recorder), RssProbe())
        spec = spec_from_folder(MODEL, models_dir / MODEL)
        try:
            await test(college, spec)
            assert not college.busy
            while college.snapshot().running:
                await asyncio.sleep(0.01)
        finally:
            await college.close()
        assert not any("worker.worker" in command_of(child) for child in psutil.Process().children())

    asyncio.run(main())


async def ask(
    college: College,
    spec: ModelSpec,
    messages: list[ChatMessage] | str,
    sampling: Sampling = GREEDY,
    max_tokens: int = TOKENS,
    *,
    buffered: bool = False,
) -> tuple[str, int]:
    """The answer, and how many tokens of the prompt were in the cache."""
    chat = [ChatMessage("user", messages)] if isinstance(messages, str) else messages
    text, reused = "", 0
    request = ce.Ask(
        spec,
        chat,
        max_tokens=max_tokens,
        sampling=sampling,
        buffered=buffered,
    )
    async for event in college.ask(request):
        if isinstance(event, ce.Delta):
            text += event.text
        elif isinstance(event, ce.PrefillStarted):
            reused = event.reused_tokens
    return text, reused


CONVERSATIONS = [
    ["My name is Ada and I like green apples.", "What is my name?", "And what do I like?", "Thanks. Say it again."],
    ["Count from one to five.", "Now backwards.", "Now only the even ones."],
    ["Name a colour.", "Another one.", "Another one.", "Which was the first?"],
]


@pytest.mark.long
@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_conversations_that_take_turns_answer_as_in_a_fresh_run(models_dir: Path, sampling: Sampling) -> None:
    prompts: list[list[ChatMessage]] = []
    answers: list[str] = []
    reused: list[int] = []

    async def talk(college: College, spec: ModelSpec) -> None:
        async def conversation(questions: list[str], pause_s: float) -> None:
            chat: list[ChatMessage] = []
            for question in questions:
                await asyncio.sleep(pause_s)
                chat.append(ChatMessage("user", question))
                text, kept = await ask(college, spec, chat, sampling)
                prompts.append(list(chat))
                answers.append(text)
                reused.append(kept)
                chat.append(ChatMessage("assistant", text))

        await asyncio.gather(*(conversation(qs, 0.01 * n) for n, qs in enumerate(CONVERSATIONS)))

    async def afresh(college: College, spec: ModelSpec) -> None:
        for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            # another seed has another generator: nothing of the one before can be used
            other = Sampling(temperature=1.0, seed=100 + number)
            await ask(college, spec, "Something else.", other, max_tokens=1)
            text, kept = await ask(college, spec, prompt, sampling)
            assert kept == 0
            assert text == answer, prompt

    with_college(models_dir, talk)
    assert any(reused) == (sampling is GREEDY)
    with_college(models_dir, afresh, slots=1)


@pytest.mark.long
def test_two_models_swap_in_a_budget_for_one(models_dir: Path) -> None:
    async def test(college: College, one: ModelSpec) -> None:
        two = msgspec.structs.replace(one, name="two")
        begin = await ask(college, one, "The capital of France is")
        peak_mb = 0.0

        async def watch() -> None:
            nonlocal peak_mb
            while True:
                peak_mb = max(peak_mb, college.snapshot().measured_mb or 0.0)
                await asyncio.sleep(0.02)

        watching = asyncio.create_task(watch())
        for spec in (two, one, two, one):
            text, _ = await ask(college, spec, "The capital of France is")
            assert text == begin[0]
            assert list(college.workers()) == [spec.name]
        both = await asyncio.gather(*(ask(college, spec, "Name a fruit.") for spec in (one, two, one, two)))
        assert len({text for text, _ in both}) == 1
        watching.cancel()
        assert peak_mb <= 450
        assert college.snapshot().lost_mb == 0

    with_college(models_dir, test, budget_mb=450)


def _storm_of_kills(models_dir: Path, seconds: float, clients: int) -> None:
    chance = random.Random(5)
    questions = ["Name a colour.", "Name a fruit.", "The capital of France is", "Write one sentence about rain."]
    samplings = [GREEDY, SEEDED, Sampling(temperature=0.8, seed=3)]
    expected: dict[tuple[str, int], str] = {}

    async def unkilled(college: College, spec: ModelSpec) -> None:
        for question in questions:
            for number, sampling in enumerate(samplings):
                expected[question, number] = (await ask(college, spec, question, sampling))[0]

    async def killed(college: College, spec: ModelSpec) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        outcomes = {"right": 0, "error": 0, "killed": 0}

        async def question_and_answer() -> bool:
            question, number = chance.choice(questions), chance.randrange(len(samplings))
            try:
                text, _ = await ask(college, spec, question, samplings[number], buffered=chance.random() < 0.5)
            except CoeError as error:
                assert error.exit_code == 7, error
                outcomes["error"] += 1
                return False
            assert text == expected[question, number]
            outcomes["right"] += 1
            return True

        async def client() -> None:
            while loop.time() < end:
                await question_and_answer()

        async def killer() -> None:
            while loop.time() < end:
                seen = outcomes["right"]
                while outcomes["right"] == seen and chance.random() < 0.98 and loop.time() < end:
                    await asyncio.sleep(0.05)  # mostly after an answer, sometimes in mid-load or before a first token
                await asyncio.sleep(chance.uniform(0.0, 0.5))
                for pid, _, _ in college.workers().values():
                    outcomes["killed"] += 1
                    kill(pid)

        await asyncio.gather(killer(), *(client() for _ in range(clients)))
        assert outcomes["killed"] > 0
        assert outcomes["right"] > outcomes["error"]
        assert all(await asyncio.gather(*(question_and_answer() for _ in range(4)))), "the college goes on"
        print(f"\n{seconds:g} s, {clients} clients: {outcomes}")

    with_college(models_dir, unkilled, slots=1)
    with_college(models_dir, killed)


@pytest.mark.long
def test_workers_killed_at_random_for_10_s(models_dir: Path) -> None:
    _storm_of_kills(models_dir, 10, 32)


@pytest.mark.slow
def test_workers_killed_at_random_for_60_s(models_dir: Path) -> None:
    _storm_of_kills(models_dir, 60, 32)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_2000_short_requests_do_not_grow_the_college(models_dir: Path) -> None:
    async def test(college: College, spec: ModelSpec) -> None:
        chance = random.Random(1)
        me = psutil.Process()

        async def some(count: int) -> None:
            for _ in range(count // 4):
                await asyncio.gather(
                    *(ask(college, spec, f"Say {chance.random()}", GREEDY, chance.randint(1, 4)) for _ in range(4))
                )

        await some(200)
        (worker_pid, _, _) = college.workers()[MODEL]
        worker = psutil.Process(worker_pid)
        before, worker_before = me.memory_info().rss, worker.memory_info().rss
        await some(2000)
        growth, of_worker = me.memory_info().rss / before - 1, worker.memory_info().rss / worker_before - 1
        print(f"\n2000 requests: college {before / 2**20:.1f} MB {growth:+.2%},", end=" ")
        print(f"worker {worker_before / 2**20:.1f} MB {of_worker:+.2%}")
        assert growth < 0.05 and of_worker < 0.05

    with_college(models_dir, test)


def test_a_real_load_and_answer_are_recorded_and_the_next_plan_uses_them(models_dir: Path, tmp_path: Path) -> None:
    store = CalibrationStore(tmp_path)
    recorder = CalibrationRecorder(store)

    async def talk(college: College, spec: ModelSpec) -> None:
        await ask(college, spec, "Name three colours.")
        await ask(college, spec, "Name three fruits.")

    with_college(models_dir, talk, recorder=recorder)
    recorder.wait()
    measurements = store.read()
    assert measurements.warning is None
    memory = memory_of(spec_from_folder(MODEL, models_dir / MODEL))
    found = calibration_of(memory, measurements)
    assert (
        found is not None and found.load_bytes is not None and found.records == 2
    )  # the load, and the first answer alone
    assert found.load_bytes == pytest.approx(memory.on.load_bytes(memory), rel=0.1)
    assert found.slot_ratio == pytest.approx(1, rel=0.4)
    assert ExactAccounting().weights_bytes(apply(memory, found)) == found.load_bytes + memory.on.mapped_bytes(memory)
