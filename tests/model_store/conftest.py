"""Folders of coe's own for each test, and its command line run in this process."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import eventually

from coe_cli.app import run
from coe_cli.runtime.store import source_errors
from model_store.hub_server import Hub
from model_store.tiny_model import catalog_entry, write_tiny_model


@dataclass(frozen=True)
class Run:
    """What one command left behind."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


@dataclass
class Coe:
    """coe with folders below ``folder``; ``models`` is empty at first."""

    folder: Path
    capture: pytest.CaptureFixture[str]

    @property
    def models(self) -> Path:
        return self.folder / "models"

    def __call__(self, *arguments: str) -> Run:
        self.capture.readouterr()
        code = run(list(arguments))
        written = self.capture.readouterr()
        return Run(int(code), written.out, written.err)

    def catalog(self, **models: Any) -> None:
        """Give the user a catalog with these models, over the shipped one."""
        config = self.folder / "config"
        config.mkdir(exist_ok=True)
        (config / "experts.yaml").write_text(yaml.safe_dump({"models": models}), encoding="utf-8")

    @property
    def left_over(self) -> list[str]:
        """What lies in the models folder beside models and locks."""
        return sorted(p.name for p in self.models.iterdir() if p.name.startswith(".") and not p.name.endswith(".lock"))


@pytest.fixture
def coe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Coe:
    for name in [name for name in os.environ if name.startswith(("COE_", "HF_"))]:
        if name != "COE_PATIENCE_S":
            monkeypatch.delenv(name)
    for name in ("models", "config", "state", "cache"):
        monkeypatch.setenv(f"COE_{name.upper()}_DIR", str(tmp_path / name))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("COE_NO_SERVE", "1")
    monkeypatch.setattr(source_errors, "_silent_since", {})  # what was silent for one test may answer the next
    (tmp_path / "models").mkdir()
    return Coe(tmp_path, capsys)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on loopback that coe is pointed at."""
    hub = Hub()
    server = hub.start()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield hub
    hub.over.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def published(tmp_path: Path, hub: Hub, coe: Coe) -> dict[str, bytes]:
    """The files of a tiny model that the hub has as ``someone/tiny`` and the catalog as ``tiny``."""
    folder = write_tiny_model(tmp_path / "published")
    hub.add_folder("someone/tiny", folder)
    coe.catalog(tiny=catalog_entry("hf:someone/tiny"))
    return hub.repositories["someone/tiny"]


def fetched(coe: Coe, process: subprocess.Popen[bytes], at_least: int) -> Path:
    """What a ``process`` that pulls has of a file, once that is so many bytes."""

    def look() -> Path | None:
        assert process.poll() is None, process.communicate()
        for path in coe.models.rglob("*.part"):
            with contextlib.suppress(OSError):  # the file was whole meanwhile
                if path.stat().st_size >= at_least:
                    return path
        return None

    return eventually(look)


def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own on ``folder``, for as long as the generator lasts."""
    mount = ["mount", "-t", "tmpfs", "-o", options, "coe-test", str(folder)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def small_disk(coe: Coe) -> Iterator[Path]:
    """The models folder on a file system of 500 kB."""
    yield from mounted(coe.models, "size=500000")


@pytest.fixture
def read_only_disk(coe: Coe) -> Iterator[Path]:
    """The models folder on a read-only file system."""
    yield from mounted(coe.models, "size=500000,ro")


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with random weights."""
    from importing.configurations import write_folder

    folder = tmp_path_factory.mktemp("source")
    changes = {"vocab_size": 288, "intermediate_size": 128, "num_hidden_layers": 2, "max_position_embeddings": 512}
    tokens = {"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": None}
    source = write_folder(folder / "llama", "llama", **changes, **tokens)
    tokenizer = write_tiny_model(folder / "tokenizer")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).write_bytes((tokenizer / name).read_bytes())
    return source
