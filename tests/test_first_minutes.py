"""The first five minutes are as tests/screens and the pages have them: ``python tests/first_minutes.py`` writes both."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

if sys.platform == "win32":
    pytest.skip("needs a pseudo-terminal", allow_module_level=True)

from conftest import MODEL, Coe
from first_minutes import PAGES, SCENES, SIZES, MadeUp, page_with_screens, play, screen_file, without_answers
from model_store.hub_server import Hub


@pytest.fixture(scope="module")
def hub(models_dir: Path) -> Iterator[Hub]:
    """A hub on loopback that has the embedded model, ready-made."""
    hub = Hub()
    hub.add_folder("someone/ready", models_dir / MODEL)
    server = hub.start()
    yield hub
    server.shutdown()
    server.server_close()


ON_ONE_SCREEN = ("plan", "fit", "vram", "turns")
"""Scenes whose first line is still there when the shell asks for the next."""
FAST = {("plan", 200), ("offline-none-16g", 80), *((name, 80) for name in ON_ONE_SCREEN)}
LONG = {("online", 80), ("offline-ask", 80), ("offline-amd-16g", 80)}


def mark(scene: tuple[str, int]) -> Any:
    return pytest.mark.long if scene in LONG else () if scene in FAST else pytest.mark.slow


PLAYED = [
    pytest.param(name, size, id=f"{name}-{size[0]}", marks=mark((name, size[0]))) for name in SCENES for size in SIZES
]


@pytest.mark.parametrize(("name", "size"), PLAYED)
def test_a_scene(name: str, size: tuple[int, int], hub: Hub, request: pytest.FixtureRequest) -> None:
    routing = request.getfixturevalue("routing_home") if SCENES[name].online else None
    shown = without_answers(name, play(SCENES[name], size, hub, routing))
    assert shown == without_answers(name, screen_file(name, size).read_text(encoding="utf-8"))
    lines = shown.splitlines()
    assert all(len(line) <= size[0] for line in lines)
    assert len(lines) < size[1] or name not in ON_ONE_SCREEN


def test_a_machine_that_is_set_up_is_planned_without_a_model_twice(bare_coe: Coe) -> None:
    (bare_coe.config / "experts.yaml").write_text("default_model: qwen2.5-1.5b-instruct\n")
    made_up = MadeUp(bare_coe.folder, bare_coe.models)
    made_up.card = "none-16g"
    command = made_up.command("setup", "--dry-run", "--json")
    plan = json.loads(made_up.run(command=command).check().stdout)
    assert [model["name"] for model in plan["models"]] == ["qwen2.5-1.5b-instruct"]


def test_the_pages_are_that_session() -> None:
    shown = set()
    for file in PAGES:
        page = file.read_text(encoding="utf-8")
        assert page == page_with_screens(page), "run: python tests/first_minutes.py"
        shown |= {line.split()[2] for line in page.splitlines() if "<!-- screen" in line}
    assert {"online", "offline-none-16g", "plan", "fit", "vram"} <= shown
