"""What `coe setup` shows first, on screens that are kept in tests/screens; UPDATE_SCREENS=1 writes them anew."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, Coe

if sys.platform == "win32":
    pytest.skip("needs a pseudo-terminal", allow_module_level=True)

from test_live_view import Terminal

SCREENS = Path(__file__).parent / "screens"


class MadeUp(Coe):
    """coe on a machine with a card that is made up."""

    card = ""

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, str(REPOSITORY / "tests" / "made_up_machine.py"), self.card, *arguments]


@pytest.mark.parametrize("size", [(80, 24), (200, 50)], ids="{0[0]}x{0[1]}".format)
@pytest.mark.parametrize("card", ["amd-16g", "nvidia-8g", "igpu-32g", "none-16g"])
def test_the_first_screen(bare_coe: Coe, card: str, size: tuple[int, int]) -> None:
    made_up = MadeUp(bare_coe.folder, bare_coe.models)
    made_up.card = card
    terminal = Terminal(made_up, "setup", "--dry-run", size=size)
    assert terminal.code == 0
    lines = "\n".join(terminal.screen).strip("\n").splitlines()
    shown = re.sub(r"of [\d.]+ [MG]B free", "of … free", "\n".join(line.rstrip() for line in lines)) + "\n"
    file = SCREENS / f"setup-{card}-{size[0]}.txt"
    if os.environ.get("UPDATE_SCREENS"):
        SCREENS.mkdir(exist_ok=True)
        file.write_text(shown, encoding="utf-8")
    assert shown == file.read_text(encoding="utf-8")
    assert all(len(line) <= size[0] for line in lines)


@pytest.mark.parametrize("size", [(80, 24), (200, 50)], ids="{0[0]}x{0[1]}".format)
def test_without_a_network_setup_says_so_and_changes_nothing(bare_coe: Coe, size: tuple[int, int]) -> None:
    made_up = MadeUp(bare_coe.folder, bare_coe.models)
    made_up.card, made_up.environment = "none-16g", bare_coe.environment
    terminal = Terminal(made_up, "setup", "--yes", size=size)
    assert terminal.code == 4
    said = " ".join(terminal.seen.split())
    assert "2 of 2 models are not installed: smollm2-135m, qwen2.5-1.5b-instruct." in said
    assert said.endswith("Then run `coe setup` again: it goes on from there.")
    assert not list(bare_coe.config.iterdir()), "the settings wait for the models"


def test_a_machine_that_is_set_up_is_planned_without_a_model_twice(bare_coe: Coe) -> None:
    (bare_coe.config / "experts.yaml").write_text("default_model: qwen2.5-1.5b-instruct\n")
    made_up = MadeUp(bare_coe.folder, bare_coe.models)
    made_up.card = "none-16g"
    plan = json.loads(made_up.run("setup", "--dry-run", "--json").check().stdout)
    assert [model["name"] for model in plan["models"]] == ["qwen2.5-1.5b-instruct"]


def test_the_page_shows_that_screen() -> None:
    page = (REPOSITORY / "docs" / "first-question.md").read_text(encoding="utf-8")
    assert (SCREENS / "setup-none-16g-80.txt").read_text(encoding="utf-8") in page
