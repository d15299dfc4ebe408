"""`coe models pull pypi:…` from an index that breaks off, lies or asks for a password, and from a folder of wheels."""

from __future__ import annotations

import os
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest
from pip._internal import commands

from coe_cli.runtime.store import pip_fetch
from coe_cli.runtime.store.source_errors import SourceFailed
from model_store.conftest import Coe, fetched
from model_store.hub_server import Hub
from model_store.test_archives import archive_of
from model_store.test_pull import assert_installed, assert_nothing, files_of, pull, start
from model_store.tiny_model import write_tiny_model

WHEEL = "tiny_models-1.0-py3-none-any.whl"
ADDRESS = "pypi:tiny-models==1.0/tiny_models/one"
PADDING_BYTES = 3 * 2**20


def write_wheel(path: Path, model: Path, padding: int = 0) -> bytes:
    info = "tiny_models-1.0.dist-info"
    members = {f"tiny_models/one/{name}": data for name, data in files_of(model).items()}
    members |= {
        "tiny_models/padding": bytes(padding),
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-models\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    return archive_of("zip", members, path / WHEEL).read_bytes()


@pytest.fixture
def files(coe: Coe, tmp_path: Path) -> dict[str, bytes]:
    """What is installed out of the wheel."""
    return files_of(write_tiny_model(tmp_path / "source"))


@pytest.fixture
def index(hub: Hub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The hub as a package index with one wheel, the only one that pip is configured for."""
    hub.wheels[WHEEL] = write_wheel(tmp_path, tmp_path / "source", PADDING_BYTES)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{hub.url}/simple/")
    return hub


def test_a_folder_of_wheels(coe: Coe, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    write_wheel(wheels, tmp_path / "source")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    result = pull(coe, ADDRESS)
    assert result.code == 0, result.stderr
    assert_installed(coe, files, "one")
    assert (wheels / WHEEL).exists(), "the user's own file stays"
    assert "has no file or folder" in pull(coe, "pypi:tiny-models/tiny_models/two").stderr


@pytest.mark.long
@pytest.mark.parametrize("has_ranges", [True, False])
def test_an_index(coe: Coe, index: Hub, files: dict[str, bytes], has_ranges: bool) -> None:
    index.has_ranges = has_ranges
    result = pull(coe, ADDRESS)
    assert result.code == 0, result.stderr
    assert "Fetching tiny-models==1.0" in result.stderr
    assert_installed(coe, files, "one")


@pytest.mark.long
@pytest.mark.parametrize("after", [1, 2_000_000])
def test_a_wheel_that_breaks_off_is_taken_up_again(coe: Coe, index: Hub, files: dict[str, bytes], after: int) -> None:
    index.drop_after[WHEEL] = [after]
    assert pull(coe, ADDRESS).code == 0
    assert_installed(coe, files, "one")
    first, second = index.ranges(WHEEL)
    # Windows forgets what came just before a connection was reset.
    assert first == "" and (second.startswith("bytes=") or (os.name == "nt" and after == 1))


@pytest.mark.long
def test_a_server_without_ranges_sends_it_all_again(coe: Coe, index: Hub, files: dict[str, bytes]) -> None:
    index.has_ranges = False
    index.drop_after[WHEEL] = [2_000_000]
    assert pull(coe, ADDRESS).code == 0
    assert_installed(coe, files, "one")


def test_another_pip_fetches_it_itself(
    coe: Coe, index: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A pip whose inner parts have other names: its own command is used."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import sys\nif 'coe_cli.runtime.store.pip_fetch' in sys.orig_argv: sys.modules['pip._internal.commands'] = None\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=os.pathsep)
    result = pull(coe, ADDRESS)
    assert result.code == 0, result.stderr
    assert_installed(coe, files, "one")
    assert any("pip/" in headers.get("user-agent", "") for _, path, headers in index.requests if path.endswith(".whl"))


@pytest.mark.long
def test_killed_in_the_middle_of_a_wheel_it_goes_on_from_there(coe: Coe, index: Hub, files: dict[str, bytes]) -> None:
    index.stall_after[WHEEL] = 2 * 2**20
    process = start(ADDRESS)
    fetched(coe, process, 2**20)
    process.kill()
    process.communicate()
    assert_nothing(coe, "one")
    index.stall_after.clear()
    index.requests.clear()
    assert pull(coe, ADDRESS).code == 0
    assert_installed(coe, files, "one")
    (asked,) = index.ranges(WHEEL)
    assert asked not in ("", "bytes=0-")


@pytest.mark.long
def test_a_part_that_is_whole_already_is_not_fetched_again(coe: Coe, index: Hub, files: dict[str, bytes]) -> None:
    index.stall_after[WHEEL] = 2 * 2**20
    process = start(ADDRESS)
    part = fetched(coe, process, 1)  # its request has come
    process.kill()
    process.communicate()
    part.write_bytes(index.wheels[WHEEL])
    index.stall_after.clear()
    index.requests.clear()
    assert pull(coe, ADDRESS).code == 0
    assert_installed(coe, files, "one")
    assert index.ranges(WHEEL) == []


@pytest.mark.long
def test_another_content_than_the_index_says_is_refused(coe: Coe, index: Hub) -> None:
    whole = index.wheels[WHEEL]
    with zipfile.ZipFile(coe.folder / WHEEL) as packed:
        where = packed.getinfo("tiny_models/padding").header_offset + 1000
    index.tampered[WHEEL] = whole[:where] + b"\x01" + whole[where + 1 :]
    result = pull(coe, ADDRESS)
    assert result.code == 4
    assert "has SHA-256" in result.stderr
    assert_nothing(coe, "one")
    index.tampered.clear()
    assert pull(coe, ADDRESS).code == 0


def test_an_index_with_a_password(
    coe: Coe, index: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    index.wheel_password = "secret-of-the-user"
    monkeypatch.setenv("PIP_INDEX_URL", index.url.replace("http://", "http://me:secret-of-the-user@") + "/simple/")
    result = pull(coe, ADDRESS)
    assert result.code == 0, result.stderr
    assert_installed(coe, files, "one")
    assert "secret-of-the-user" not in result.stderr
    assert b"secret-of-the-user" not in (coe.models / "one" / "coe_manifest.json").read_bytes()


def test_a_wheel_larger_than_the_disk(coe: Coe, index: Hub, small_disk: Path) -> None:
    result = pull(coe, ADDRESS)
    assert result.code == 5, result.stderr
    assert coe.left_over == []


def test_the_index_has_its_time_when_pip_is_ready(index: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On a slow or busy machine the import of pip alone takes as long as the index may."""
    events: list[str] = []

    class Timer(threading.Timer):
        def start(self) -> None:
            events.append("the index is waited for")

    def create_command(name: str) -> Any:
        events.append("pip is imported")
        return create(name)

    monkeypatch.setattr("coe_cli.runtime.store.pip_fetch.threading.Timer", Timer)
    create = commands.create_command
    monkeypatch.setattr(commands, "create_command", create_command)
    assert pip_fetch.fetch("tiny-models==1.0", tmp_path).is_file()
    assert events == ["pip is imported", "the index is waited for"]


def test_an_index_that_has_answered_is_no_longer_waited_for(
    index: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever it answered: what the next source takes is not the index's silence."""
    ended: list[str] = []

    class Timer(threading.Timer):
        def cancel(self) -> None:
            super().cancel()
            ended.append("cancelled")

    monkeypatch.setattr("coe_cli.runtime.store.pip_fetch.threading.Timer", Timer)
    with pytest.raises(SourceFailed, match="no wheel"):
        pip_fetch.fetch("tiny-models==9.9", tmp_path)
    assert ended == ["cancelled"]


def test_an_index_that_is_not_there(coe: Coe, index: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple/")
    result = pull(coe, ADDRESS)
    assert result.code == 4
    assert "is not reachable through pip" in result.stderr
    assert coe.left_over == []
