"""The first five minutes, played in a real terminal on machines that are made up.

``python tests/first_minutes.py`` writes the screens to tests/screens, and with them the pages of ``PAGES``; names of scenes
after it (``plan online``) play these alone.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import yaml
from conftest import MODEL, REPOSITORY, Coe
from model_store.hub_server import Hub
from routing_fixtures import build_sentence_transformer, prepare_routing
from test_live_view import Terminal

SCREENS = REPOSITORY / "tests" / "screens"
PAGES = tuple(REPOSITORY / "docs" / f"{name}.md" for name in ("first-question", "planning"))
SIZES = ((80, 24), (200, 50))
CARDS = ("amd-16g", "nvidia-8g", "igpu-32g", "none-16g")
_HOME = "/home/someone/coe"
_ANSWER = re.compile(r"(\$ coe ask What is a deadlock\??\n).*?(?=\ncoe: it works|\n\$ |\Z)", re.DOTALL)


class Typed(NamedTuple):
    """A command line, what is typed when a pattern is seen, and the exit code."""

    line: str
    code: int = 0
    types: tuple[tuple[str, str], ...] = ()


class Scene(NamedTuple):
    """What somebody types on a machine; ``online`` with a hub, and the embedder on disk."""

    card: str
    typed: tuple[Typed, ...]
    online: bool = False


YES, NO = (("Do that", "y\n"),), (("Do that", "n\n"),)
SCENES = {
    "plan": Scene("amd-16g", (Typed("coe setup --dry-run"),)),
    **{f"offline-{card}": Scene(card, (Typed("coe setup", 4, YES),)) for card in CARDS},
    "offline-ask": Scene("none-16g", (Typed("coe ask What is a deadlock", 4, NO),)),
    "fit": Scene("amd-16g", (Typed("coe fit 16G"),)),
    "vram": Scene("amd-16g", (Typed("coe vram plan -p compact -e python_backend"),)),
    "turns": Scene("amd-16g", (Typed("coe vram plan -p compact -e python_backend,sql_query", 5),)),
    "online": Scene("none-4g", (Typed("coe setup", 0, YES), Typed("coe ask What is a deadlock")), online=True),
}


class MadeUp(Coe):
    """coe on a machine with a card that is made up."""

    card = ""

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, str(REPOSITORY / "tests" / "made_up_machine.py"), self.card, *arguments]


@contextmanager
def machine(card: str, hub: Hub | None, routing: Path | None, answer_tokens: int) -> Iterator[MadeUp]:
    """A machine on which nothing is set up yet; its folders have names of one length, since lines are broken by it."""
    folder = Path(tempfile.mkdtemp(prefix="coe-", dir="/tmp"))
    coe = MadeUp(folder, folder / "models")
    coe.card = card
    coe.environment |= {"PIP_NO_INDEX": "1", "COE_NO_ROUTE": "0"}
    if hub is None or routing is None:
        coe.environment["HF_ENDPOINT"] = "http://127.0.0.1:9"
    else:
        coe.environment |= {"HF_ENDPOINT": hub.url, "NO_PROXY": "127.0.0.1", "COE_EMBEDDER": str(routing / "model")}
        shutil.copytree(routing / "cache", folder / "cache")
        ready = {"sources": [{"uri": "hf:someone/ready", "size_mb": 103}], "format": "oga"}
        (coe.config / "experts.yaml").write_text(yaml.safe_dump({"models": {MODEL: ready}}))
        brief = {"embedded": {"max_answer_tokens": answer_tokens}}
        (coe.config / "hardware_profiles.yaml").write_text(yaml.safe_dump({"profiles": brief}))
    try:
        yield coe
    finally:
        coe.end_all()
        shutil.rmtree(folder)


def play(
    scene: Scene,
    size: tuple[int, int],
    hub: Hub | None = None,
    routing: Path | None = None,
    *,
    answer_tokens: int = 12,
) -> str:
    """The scene's commands in a terminal of ``size``, and all that is on it at the end."""
    told = ""
    with machine(scene.card, hub if scene.online else None, routing, answer_tokens) as coe:
        for typed in scene.typed:
            terminal = Terminal(coe, *shlex.split(typed.line)[1:], types=typed.types, size=size)
            assert terminal.code == typed.code, terminal.seen
            told += f"$ {typed.line}\n{terminal.scrollback}"
        return told.replace(str(coe.folder), _HOME)


def without_answers(name: str, told: str) -> str:
    """What a scene shows, with a mark for each answer, which no two processors give alike."""
    return _ANSWER.sub(r"\1…", told) if SCENES[name].online else told


def screen_file(name: str, size: tuple[int, int]) -> Path:
    return SCREENS / f"{name}-{size[0]}.txt"


def page_with_screens(page: str) -> str:
    """The page with each screen of 80 columns under the line that names it."""

    def put(match: re.Match[str]) -> str:
        return f"{match[1]}```text\n{screen_file(match[2], SIZES[0]).read_text(encoding='utf-8')}```"

    return re.sub(r"(<!-- screen (\S+) -->\n)```text\n.*?```", put, page, flags=re.DOTALL)


def write(models: Path, names: Sequence[str]) -> None:
    """Play the scenes of these names and keep what they show; ``models`` has the embedded model."""
    hub = Hub()
    hub.add_folder("someone/ready", models / MODEL)
    server = hub.start()
    with tempfile.TemporaryDirectory() as home:
        routing = Path(home)
        if any(SCENES[name].online for name in names):
            prepare_routing(routing / "cache", build_sentence_transformer(routing))
        SCREENS.mkdir(exist_ok=True)
        for name in names:
            for size in SIZES:
                told = play(SCENES[name], size, hub, routing, answer_tokens=400)
                screen_file(name, size).write_text(told, encoding="utf-8")
    server.shutdown()
    for page in PAGES:
        page.write_text(page_with_screens(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    write(REPOSITORY / "models", sys.argv[1:] or [*SCENES])
