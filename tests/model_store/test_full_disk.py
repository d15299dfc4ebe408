"""A disk that runs full in the middle, a file system that takes no large files, a models folder that cannot be written."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from coe_cli.runtime.store.integrity import check_files
from model_store.conftest import Coe
from model_store.hub_server import Hub
from model_store.test_pull import assert_installed, assert_nothing, pull
from model_store.tiny_model import write_tiny_model

if sys.platform == "win32":
    pytest.skip("limits and mounts of POSIX systems", allow_module_level=True)

import resource

DISK = 500_000


def no_file_beyond(limit_bytes: int) -> Callable[[], None]:
    """For a child process: the system refuses larger files (EFBIG), as FAT32 does from 4 GB on. Needs no rights."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))


def run_limited(limit_bytes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "coe_cli", "models", *arguments]
    root = str(Path(__file__).parents[2])
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=root, preexec_fn=no_file_beyond(limit_bytes)
    )


def test_a_file_too_large_for_the_file_system(coe: Coe, published: dict[str, bytes]) -> None:
    limit = len(published["model.onnx.data"]) // 2
    result = run_limited(limit, "pull", "--as-is", "tiny")
    assert result.returncode == 5, result.stderr
    assert "takes no file so large" in result.stderr and "COE_MODELS_DIR" in result.stderr
    assert_nothing(coe)
    assert coe.left_over == []
    assert pull(coe, "tiny").code == 0
    assert_installed(coe, published)


@pytest.mark.long
def test_a_graph_that_cannot_be_written_leaves_the_model(coe: Coe) -> None:
    folder = write_tiny_model(coe.models / "tiny")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    result = run_limited(500, "optimize", "tiny")
    assert result.returncode == 5, result.stderr
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert coe.left_over == []


def test_a_disk_without_rights_that_runs_full(coe: Coe, tmp_path: Path) -> None:
    """In a user namespace of its own, where anyone may mount a file system."""
    script = f'mount -t tmpfs -o size={DISK} t "$1" && "$2" -m coe_cli models pull --as-is "$3"; code=$?; ls -A "$1"; exit $code'
    inside = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        "sh",
        "-c",
        script,
        "sh",
        str(coe.models),
        sys.executable,
    ]
    if subprocess.run([*inside[:4], "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces")
    result = subprocess.run(
        [*inside, f"file:{archive(tmp_path)}"], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert result.returncode == 5, result.stderr
    assert ("is full" in result.stderr or "B free" in result.stderr) and "Free some space" in result.stderr
    assert [name for name in result.stdout.split() if not name.endswith(".lock")] == []


def archive(folder: Path) -> Path:
    """A model that is small as an archive and too large for the disk."""
    model = write_tiny_model(folder / "source")
    (model / "extra.bin").write_bytes(bytes(2 * DISK))
    path = folder / "model.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for file in model.iterdir():
            packed.write(file, f"model/{file.name}")
    return path


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def test_someone_else_fills_the_disk_during_a_download(
    coe: Coe, hub: Hub, published: dict[str, bytes], small_disk: Path
) -> None:
    def fill(method: str, path: str) -> None:
        if method == "GET" and path.endswith("model.onnx.data"):
            (small_disk / "other.bin").write_bytes(bytes(free_bytes(small_disk) - 8192))

    hub.on_request = fill
    result = pull(coe, "tiny")
    assert result.code == 5, result.stderr
    assert "is full" in result.stderr or "B free" in result.stderr
    assert_nothing(coe)
    assert coe.left_over == []
    hub.on_request = None
    (small_disk / "other.bin").unlink()
    assert pull(coe, "tiny").code == 0
    assert_installed(coe, published)


def test_a_forced_pull_onto_a_full_disk_leaves_the_old_model(
    coe: Coe, hub: Hub, published: dict[str, bytes], small_disk: Path
) -> None:
    assert pull(coe, "tiny").code == 0
    (small_disk / "other.bin").write_bytes(bytes(free_bytes(small_disk)))
    assert pull(coe, "tiny", "--force").code == 5
    check_files("tiny", coe.models / "tiny")
    assert coe("models", "verify", "tiny", "--no-run").code == 0


def test_an_archive_that_grows_beyond_the_disk(coe: Coe, small_disk: Path, tmp_path: Path) -> None:
    (small_disk / "needed.bin").write_bytes(b"x")
    result = pull(coe, f"file:{archive(tmp_path)}")
    assert result.code == 5
    assert ("is full" in result.stderr or "B free" in result.stderr) and "Free some space" in result.stderr
    assert coe.left_over == []
    assert (small_disk / "needed.bin").exists()


def test_a_read_only_models_folder(coe: Coe, published: dict[str, bytes], read_only_disk: Path) -> None:
    result = pull(coe, "tiny")
    assert result.code == 4
    assert "cannot be written" in result.stderr and "COE_MODELS_DIR" in result.stderr


def test_a_model_on_a_read_only_disk_is_used_and_not_removed(coe: Coe, small_disk: Path) -> None:
    write_tiny_model(coe.models / "tiny")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert coe("models", "verify", "tiny").code == 0
    for command in ("rm", "optimize"):
        result = coe("models", command, "tiny")
        assert result.code == 4
        assert "cannot be" in result.stderr
    check_files("tiny", coe.models / "tiny")
