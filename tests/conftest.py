"""Run coe as its users do: a real process with folders of its own, and a real model where an answer is wanted."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import filelock
import hypothesis
import psutil
import pytest
from fork_server import ForkServer
from leftovers import changes, state
from operating_system import OF_ITS_OWN, WINDOWS, end_tree

if TYPE_CHECKING:
    import openai
    from serving import Served

# A shell that starts the tests in the background has Ctrl-C ignored, and every process of theirs would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Nor is what only a slow machine makes coe say.
os.environ["COE_PATIENCE_S"] = "3600"

# Examples are not timed either: a machine that stands still for a moment proves nothing.
_EVERYDAY = os.environ.get("HYPOTHESIS_PROFILE") == "everyday"


def examples(count: int) -> int:
    """How many examples Hypothesis tries: ``count``, in `make test` a third of them."""
    return max(1, count // 3) if _EVERYDAY else count


hypothesis.settings.register_profile(
    "untimed",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    max_examples=examples(100),
)
hypothesis.settings.load_profile("untimed")

REPOSITORY = Path(__file__).resolve().parent.parent


def _left_out() -> dict[str, str]:
    """What the Windows lab leaves out → why: files, single tests as ``file::test``, all tests with a fixture as ``fixture …``."""
    if os.environ.get("COE_ON_WINLAB") is None:
        return {}
    text = (REPOSITORY / "tests" / "windows" / "cannot_run.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


LEFT_OUT = _left_out()
LEFT_OUT_FILES = sum(len(list(REPOSITORY.glob(name))) for name in LEFT_OUT if name.endswith(".py"))
collect_ignore_glob = [str(REPOSITORY / name) for name in LEFT_OUT if name.endswith(".py")]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:  # files that take long first, so that all workers end together
        weights: Counter[Path] = Counter()
        for item in items:
            weights[item.path] += 20 if item.get_closest_marker("long") else 5 if _asks_the_model(item) else 1
        items.sort(key=lambda item: -weights[item.path])
    for item in items:
        names = {f"{item.path.relative_to(REPOSITORY).as_posix()}::{item.name.partition('[')[0]}"}
        names |= {f"fixture {fixture}" for fixture in getattr(item, "fixturenames", ())}
        for name in names & LEFT_OUT.keys():
            item.add_marker(pytest.mark.skip(reason=LEFT_OUT[name]))


def _asks_the_model(item: pytest.Item) -> bool:
    return "models_dir" in getattr(item, "fixturenames", ())


def pytest_report_header() -> list[str]:
    return [f"left out in the Windows lab: {name}: {reason}" for name, reason in LEFT_OUT.items()]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if LEFT_OUT:
        ran = {report.nodeid.partition("::")[0] for report in terminalreporter.stats.get("passed", ())}
        terminalreporter.write_line(f"{len(ran)} test files ran under Windows' Python; {LEFT_OUT_FILES} are left out")


MODEL = "smollm2-135m"
_MODELS = Path(os.environ.get("COE_MODELS_DIR") or REPOSITORY / "models").absolute()
ENDLESS = "Write a long story about a ship, a lighthouse and a storm. Take at least ten chapters."
"""Greedily (``--temperature 0``) the embedded model goes on with it for more than 400 tokens; most other questions it ends within a second."""
_OURS = ("COE_", "HF_", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "CLICOLOR", "TTY_", "_COE")


@dataclass(frozen=True)
class Result:
    """What one run left behind."""

    stdout: str
    stderr: str
    code: int

    def check(self) -> Result:
        """This result, if the run succeeded."""
        assert self.code == 0, self.stderr
        return self


@functools.cache
def fork_server() -> ForkServer:
    """The one of these tests, which is started when it is first needed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    server = ForkServer(clean | {"PYTHONPATH": str(REPOSITORY)})
    atexit.register(server.close)
    return server


@dataclass
class Coe:
    """Starts coe in a clean environment; ``run`` waits for it, ``start`` does not."""

    folder: Path
    models: Path
    environment: dict[str, str] = field(init=False)
    started: list[subprocess.Popen[bytes]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(_OURS)}
        inherited = os.environ.get("PYTHONPATH", "")
        self.environment |= {
            "COE_MODELS_DIR": str(self.models),
            "COE_NO_SERVE": "1",
            "COE_NO_ROUTE": "1",
            # Two files are tested at a time on two cores: threads of one answer would wait, spinning, for those of the other.
            "COE_THREADS": "1",
            "COE_PATIENCE_S": os.environ["COE_PATIENCE_S"],
            "COE_CONFIG_DIR": str(self.folder / "config"),
            "COE_STATE_DIR": str(self.folder / "state"),
            "COE_CACHE_DIR": str(self.folder / "cache"),
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *([inherited] if inherited else [])]),
        }

    @property
    def config(self) -> Path:
        """The user's configuration folder."""
        path = self.folder / "config"
        path.mkdir(exist_ok=True)
        return path

    def sleep(self) -> None:
        """Have workers import the double that sleeps known times (tests/sleeping_oga)."""
        double = str(REPOSITORY / "tests" / "sleeping_oga")
        self.environment["PYTHONPATH"] = os.pathsep.join([double, self.environment["PYTHONPATH"]])

    def retry_soon(self) -> None:
        """What failed is tried again after a moment and not, as shipped, after five seconds."""
        (self.config / "hardware_profiles.yaml").write_text("eviction_policy: {retry_delay_seconds: 0.1}\n")

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "coe_cli", *arguments]

    def run(
        self,
        *arguments: str,
        stdin: bytes | str = b"",
        prefix: list[str] | None = None,
        command: list[str] | None = None,
        **environment: str,
    ) -> Result:
        """Run to the end: forked, but where the system starts it otherwise than in its own folder and environment."""
        data = stdin.encode() if isinstance(stdin, str) else stdin
        if not WINDOWS and not prefix and not command and all(name.startswith("COE_") for name in environment):
            done = fork_server().run(list(arguments), data, self.folder, self.environment | environment, 200)
            if done is not None:
                return Result(done[0].decode(), done[1].decode("utf-8", "replace"), done[2])
        process = subprocess.run(
            [*(prefix or []), *(command or self.command(*arguments))],
            input=data,
            capture_output=True,
            cwd=self.folder,
            env=self.environment | environment,
            timeout=200,
        )
        return Result(process.stdout.decode(), process.stderr.decode("utf-8", "replace"), process.returncode)

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start with a terminal of its own; whatever is left of it is ended with the test."""
        environment = self.environment | options.pop("environment", {})
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        process = subprocess.Popen(
            options.pop("command", None) or self.command(*arguments),
            cwd=self.folder,
            env=environment,
            **OF_ITS_OWN,
            **options,
        )
        self.started.append(process)
        return process

    def end_all(self) -> None:
        for process in self.started:
            if process.poll() is None:
                end_tree(process.pid)
                process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        self._end_college()

    def _end_college(self) -> None:
        """End the college that a command has started and left, which outlives it."""
        from serving import end

        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, psutil.Error):
            state = json.loads((self.folder / "state" / "college.json").read_text())
            process = psutil.Process(state["pid"])
            # and not another that has its id now, nor this one, which may run tests/test_server.py
            if process.pid != os.getpid() and any("serve" in word for word in process.cmdline()):
                end(process)


@pytest.fixture(scope="module", autouse=True)
def leaves_nothing() -> Iterator[None]:
    """The tests of a file leave the process as they found it: other files run in it, in any order."""
    before = state()
    yield
    assert changes(before, state()) == []


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """The folder with the embedded model: COE_MODELS_DIR, or ``models/`` of the checkout, filled when it is empty."""
    _MODELS.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(_MODELS / ".tests.lock"):
        if not (_MODELS / MODEL / "genai_config.json").exists():
            environment = os.environ | {"COE_MODELS_DIR": str(_MODELS), "PYTHONPATH": str(REPOSITORY)}
            pull = [sys.executable, "-m", "coe_cli", "models", "pull", MODEL]
            subprocess.run(pull, check=True, cwd=REPOSITORY, env=environment)
    return _MODELS


@pytest.fixture
def coe(tmp_path: Path, models_dir: Path) -> Iterator[Coe]:
    """coe with the real embedded model on disk."""
    runner = Coe(tmp_path, models_dir)
    yield runner
    runner.end_all()


@pytest.fixture
def quick_coe(tmp_path: Path) -> Iterator[Coe]:
    """coe with a model of a few kilobytes under the embedded one's name, for tests of processes and not of answers."""
    from model_store.tiny_model import write_tiny_model

    runner = Coe(tmp_path, tmp_path / "models")
    write_tiny_model(runner.models / MODEL)
    yield runner
    runner.end_all()


@pytest.fixture(scope="session")
def shared_coe(tmp_path_factory: pytest.TempPathFactory, models_dir: Path) -> Iterator[Coe]:
    """The same for answers that several tests look at."""
    runner = Coe(tmp_path_factory.mktemp("shared"), models_dir)
    yield runner
    runner.end_all()


@pytest.fixture(scope="module")
def served(shared_coe: Coe) -> Iterator[Served]:
    """A college of the embedded model."""
    from serving import serving

    with serving(shared_coe) as running:
        yield running


@pytest.fixture(scope="module")
def answered(served: Served) -> Iterator[Coe]:
    """coe whose questions that college answers, for tests of answers and not of loads."""
    runner = Coe(served.coe.folder, served.coe.models)
    runner.environment |= served.coe.environment | {"COE_NO_SERVE": "0"}
    yield runner
    runner.end_all()


@pytest.fixture(scope="module")
def client(served: Served) -> openai.OpenAI:
    """OpenAI's client of the college that the tests of a file ask."""
    return served.client()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Coe]:
    """coe with folders of its own for the tests of one file, no model in them."""
    folder = tmp_path_factory.mktemp(request.path.stem)
    runner = Coe(folder, folder / "models")
    yield runner
    runner.end_all()


@pytest.fixture
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folders of coe in this process are in here, and no profile is chosen."""
    for name in ("MODELS", "CONFIG", "STATE", "CACHE"):
        monkeypatch.setenv(f"COE_{name}_DIR", str(tmp_path / name.lower()))
    monkeypatch.delenv("COE_PROFILE", raising=False)
    return tmp_path


@pytest.fixture
def bare_coe(tmp_path: Path) -> Iterator[Coe]:
    """coe with an empty models folder, which no download may fill."""
    models = tmp_path / "models"
    models.mkdir()
    runner = Coe(tmp_path, models)
    runner.environment |= {"HF_HUB_OFFLINE": "1", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "wheels")}
    yield runner
    runner.end_all()


@pytest.fixture
def copied_model(bare_coe: Coe, models_dir: Path) -> Path:
    """The embedded model in the models folder of ``bare_coe``; replace its files, never write into them."""
    return copy_model(models_dir / MODEL, bare_coe.models / MODEL)


@pytest.fixture
def sleeper(bare_coe: Coe, models_dir: Path) -> Coe:
    """coe whose workers sleep; ``sleeping_model`` gives it models."""
    bare_coe.sleep()
    return bare_coe


def sleeping_model(coe: Coe, name: str, **sleeps: Any) -> None:
    """The real model's files, which the double does not read, and what it is to do."""
    folder = copy_model(_MODELS / MODEL, coe.models / name)
    (folder / "sleeps.json").write_text(json.dumps(sleeps))


def copy_model(source: Path, target: Path) -> Path:
    """A folder of hard links where the file system allows it, of copies where not.

    Of copies on Windows: a file that some process has open, or one of its links, cannot be removed there.
    """
    target.mkdir(parents=True)
    if source.parent == _MODELS and not WINDOWS:
        source = _own_copy(source)
    for path in source.iterdir():
        try:
            (shutil.copy2 if WINDOWS else os.link)(path, target / path.name)
        except OSError:
            shutil.copy2(path, target / path.name)
    return target


@functools.cache
def _own_copy(model: Path) -> Path:
    """A copy that only this process links: a link changes a file's times, and the colleges of all others would load the model anew."""
    folder = Path(tempfile.mkdtemp(prefix="coe-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(shutil.copytree(model, folder / model.name))


def worker_of(process: subprocess.Popen[bytes]) -> psutil.Process:
    """The worker of a running coe."""
    return eventually(lambda: next(iter(workers_of(psutil.Process(process.pid))), None))


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    """Its children that have a model or are to have one: not the one that makes the prompts, nor Windows' console."""
    own = command_of(process)  # a child's, too, before its program is there
    commands: dict[psutil.Process, str] = {}
    with contextlib.suppress(OSError):  # as ``is_gone``: another look will do
        commands = {child: command_of(child) for child in process.children()}
    none = ("prompt_process", "conhost.exe")
    return [
        child for child, text in commands.items() if text not in ("", own) and not any(part in text for part in none)
    ]


def command_of(process: psutil.Process) -> str:
    """Its command line, or "" where it begins or has ended."""
    with contextlib.suppress(psutil.Error, OSError):
        return " ".join(process.cmdline())
    return ""


def ids_of(question: str, system: str | None = None) -> list[int]:
    """Token ids of a question to the embedded model, through its chat template."""
    from tokenizers import Tokenizer

    system = system or "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    turns = [f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in (("system", system), ("user", question))]
    return list(
        Tokenizer.from_file(str(_MODELS / MODEL / "tokenizer.json"))
        .encode("".join(turns) + "<|im_start|>assistant\n")
        .ids
    )


def eventually(look: Callable[[], Any], within_s: float = 180.0) -> Any:
    """The first true value of ``look``, which on a slow machine comes late."""
    deadline = time.monotonic() + within_s
    while not (value := look()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)
    return value


def is_gone(process: psutil.Process | int) -> bool:
    """Whether a process, or the one with this id, has ended, reaped or not."""
    try:
        process = psutil.Process(process) if isinstance(process, int) else process
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, OSError):  # Windows' and Wine's, of one that ends at this moment
        return False


def read_some(stream: IO[bytes] | None, at_least: int = 1) -> bytes:
    """Bytes of a pipe as they come, until there are ``at_least`` so many."""
    assert stream is not None
    data = b""
    while len(data) < at_least:
        part = os.read(stream.fileno(), 4096)
        assert part, data
        data += part
    return data


def one_line(text: str) -> str:
    """The text, if it is a single line and no traceback."""
    assert text.endswith("\n") and text.count("\n") == 1, text
    assert "Traceback" not in text
    return text.rstrip("\n")


@pytest.fixture(scope="session")
def routing_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model``: a small sentence-transformers model; ``cache``: its export, and a router for the shipped catalog.

    One for all processes of the tests: the training takes half a minute.
    """
    from routing_fixtures import build_sentence_transformer, prepare_routing

    base = tmp_path_factory.getbasetemp()
    home = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "routing"
    home.mkdir(exist_ok=True)
    with filelock.FileLock(home / "lock"):
        if not (home / "done").exists():
            prepare_routing(home / "cache", build_sentence_transformer(home))
            (home / "done").touch()
    return home


def with_router(coe: Coe, routing_home: Path) -> Coe:
    """``coe`` with a prepared router, which routes."""
    shutil.copytree(routing_home / "cache", coe.folder / "cache")
    coe.environment |= {"COE_EMBEDDER": str(routing_home / "model"), "COE_NO_ROUTE": "0"}
    return coe


@pytest.fixture
def routing_coe(coe: Coe, routing_home: Path) -> Coe:
    return with_router(coe, routing_home)
