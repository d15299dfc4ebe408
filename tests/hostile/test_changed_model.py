"""A model whose files were replaced while it is loaded: what is asked from then on is answered by the new one."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from college_trial import WEIGHTS_MB, run, trial
from model_store.tiny_model import write_tiny_model
from operating_system import WINDOWS

from coe_cli.core.models.model_spec import ModelSpec
from coe_cli.core.scheduling.scheduler_state import ModelCost, PoolConfig
from coe_cli.runtime.college import college_events as ce
from coe_cli.runtime.college.college import College
from coe_cli.runtime.college.college_settings import CollegeSettings
from coe_cli.runtime.college.memory_probe import RssProbe
from coe_cli.runtime.store.model_store import open_model
from coe_cli.runtime.worker.protocol import ChatMessage, Sampling


def test_a_question_that_comes_while_the_old_model_answers_waits_for_the_new_one(tmp_path: Path) -> None:
    async def test() -> None:
        async with trial(tmp_path, {"one": [{"step_s": 0.01}]}) as college:
            running = asyncio.create_task(college.ask(tokens=60))
            while college.college.snapshot().running == 0:
                await asyncio.sleep(0.01)
            college.changed["one"] = WEIGHTS_MB + 20
            later = [await college.ask() for _ in range(2)]
            old = await running
            assert old.right and all(answer.right for answer in later), "what runs is finished"
            pids = [
                {event.worker_pid for event in answer.events if isinstance(event, ce.PrefillStarted)}
                for answer in (old, *later)
            ]
            assert pids[0] != pids[1] == pids[2]
            assert college.starts("one") == 2, "it is loaded once more, and once only"
            (now,) = college.college.snapshot().models
            assert now.reserved_mb == WEIGHTS_MB + 20, "with the new one's cost"

    run(test)


@pytest.mark.skipif(WINDOWS, reason="the folder of a loaded model cannot be renamed there")
def test_a_replaced_folder_answers_with_the_new_weights(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "tiny")
    write_tiny_model(tmp_path / "other", seed=5)

    async def answers(college: College, spec: ModelSpec) -> str:
        ask = ce.Ask(spec, [ChatMessage("user", "Hello")], max_tokens=12, sampling=Sampling(temperature=0))
        return "".join([event.text async for event in college.ask(ask) if isinstance(event, ce.Delta)])

    async def test() -> None:
        settings = CollegeSettings(
            PoolConfig(vram_budget_mb=2000, min_residency_s=0.0), lambda spec: (ModelCost(100, 10), 256)
        )
        college = College(settings, RssProbe())
        try:
            first = await answers(college, open_model("tiny", folder))
            assert await answers(college, open_model("tiny", folder)) == first
            folder.rename(tmp_path / "old")
            shutil.copytree(tmp_path / "other", folder)
            second = await answers(college, open_model("tiny", folder))
            assert second != first
            shutil.rmtree(folder)
            (tmp_path / "old").rename(folder)
            assert await answers(college, open_model("tiny", folder)) == first
        finally:
            await college.close()

    asyncio.run(test())
