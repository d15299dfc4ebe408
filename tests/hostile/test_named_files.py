"""Files that a user names: a FIFO is not waited for, a device without an end not read, and nothing larger than it may be."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from model_store.conftest import Coe
from model_store.tiny_model import write_tiny_model
from msgspec import structs
from operating_system import make_fifo, make_link

from coe_cli.errors import CoeError
from coe_cli.runtime import settings
from coe_cli.runtime.bench import bench_job
from coe_cli.runtime.folders import catalog_paths, profile_paths
from coe_cli.runtime.routing.router_cache import training_set
from coe_cli.runtime.settings import load_catalog, load_profiles, settings_digest
from coe_cli.runtime.store.integrity import read_manifest


def fifo(path: Path) -> Path:
    make_fifo(path)
    return path


def endless(path: Path) -> Path:
    make_link(path, "/dev/zero")
    return path


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    """Whoever waits for a FIFO is woken, where there are FIFOs."""
    if sys.platform == "win32":
        yield
        return

    def wake(*_: object) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, wake)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("make", [fifo, endless])
@pytest.mark.parametrize(
    "arguments",
    [
        ("route", "Hi", "--experts-file"),
        ("vram", "plan", "--profiles"),
        ("vram", "plan", "--fleet"),
        ("bench", "--against"),
    ],
    ids=" ".join,
)
def test_what_is_no_file_is_refused_as_one(
    coe: Coe, tmp_path: Path, make: Callable[[Path], Path], arguments: tuple[str, ...]
) -> None:
    write_tiny_model(coe.models / "tiny")
    path = make(tmp_path / "given.yaml")
    done = coe(*arguments, str(path))
    assert done.code in (2, 3), done.stderr
    assert "not a regular file" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("make", [fifo, endless])
def test_the_users_own_files_are_looked_at_the_same_way(coe: Coe, tmp_path: Path, make: Callable[[Path], Path]) -> None:
    (tmp_path / "config").mkdir()
    for name in ("hardware_profiles.yaml", "experts.yaml"):
        make(tmp_path / "config" / name)
    assert settings_digest(None, None) == ""
    done = coe("models", "list")
    assert done.code in (0, 3) and "not a regular file" in done.stderr


def test_an_examples_file_that_is_none_counts_as_missing(tmp_path: Path) -> None:
    catalog = load_catalog(catalog_paths())
    fifo(tmp_path / "routing_examples.yaml")
    few = training_set(structs.replace(catalog, paths=(tmp_path / "experts.yaml",)))
    assert 0 < len(few.single) < len(training_set(catalog).single)


def test_a_manifest_that_is_none_is_no_manifest(tmp_path: Path) -> None:
    assert read_manifest(fifo(tmp_path / "coe_manifest.json").parent) is None
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "coe_manifest.json").write_text("[" * 100_000)
    assert read_manifest(tmp_path / "other") is None


def test_sizes_have_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.yaml"
    path.write_bytes(b"# " + b"x" * settings.MAX_BYTES)
    with pytest.raises(CoeError, match="more than 8388608 bytes"):
        load_profiles([*profile_paths(), path])
    monkeypatch.setattr(bench_job, "_MAX_REPORT_BYTES", 1000)
    with pytest.raises(CoeError, match="cannot be read"):
        bench_job.read_report(path)


def test_a_batch_reads_pipes_and_no_devices(coe: Coe, tmp_path: Path) -> None:
    """A shell's ``<(…)`` is a pipe with a name."""
    for device in (endless(tmp_path / "zero"), "/dev/null"):
        done = coe("batch", str(device), "-o", str(tmp_path / "out.jsonl"))
        assert done.code == 2 and "is not a file or pipe" in done.stderr
    write_tiny_model(coe.models / "tiny")
    row = '{"prompt": "Hi", "model": "tiny", "max_tokens": 1}'
    script = f"{sys.executable} -m coe_cli batch <(echo '{row}') -o {tmp_path / 'out.jsonl'}"
    ran = subprocess.run(["bash", "-c", script], capture_output=True, encoding="utf-8", timeout=200)
    assert ran.returncode == 0, ran.stderr
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 1
