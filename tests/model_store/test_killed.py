"""Import and optimize killed at every stage: the model is the old one or none, and the next run succeeds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from importing.gguf_files import write_gguf

from coe_cli.output.progress_view import amount
from coe_cli.runtime.store.integrity import check_files
from model_store.conftest import Coe
from model_store.hub_server import Hub
from model_store.tiny_model import write_tiny_model

# The process says each stage on stdout and waits for a line on stdin before it goes on. The converter is a small one
# that writes its files one by one; everything around it is coe's own.
SCRIPT = """
import sys, types
from pathlib import Path
sys.path[:0] = [{tests!r}, {root!r}]

def stage(name):
    print(name, flush=True)
    sys.stdin.readline()

def convert(source, output, **options):
    import shutil, tempfile
    from model_store.tiny_model import write_tiny_model
    whole = write_tiny_model(Path(tempfile.mkdtemp()) / "whole", seed=3)
    for path in sorted(whole.iterdir()):
        shutil.copyfile(path, output / path.name)
        stage("converted " + path.name)

module = types.ModuleType("coe_cli.runtime.importing.convert")
module.convert = convert
sys.modules["coe_cli.runtime.importing.convert"] = module

import coe_cli.runtime.store.model_store as store
import coe_cli.runtime.store.install as installing
import coe_cli.runtime.conversion.optimize as optimizing

def staged(function):
    def run(*arguments, **options):
        stage("before " + function.__name__)
        result = function(*arguments, **options)
        stage("after " + function.__name__)
        return result
    return run

for module in (installing, optimizing):
    for name in ("fetch", "_check", "_optimized", "write_manifest", "put_in_place", "write_pruned", "_prove"):
        if hasattr(module, name):
            setattr(module, name, staged(getattr(module, name)))

from coe_cli.app import run
sys.exit(run(sys.argv[1:]))
"""


def stages_until_killed(arguments: list[str], survive: int) -> list[str]:
    """Run coe, let it pass ``survive`` stages and kill it at the next one; the stages that it reached."""
    tests = Path(__file__).parents[1]
    script = SCRIPT.format(tests=str(tests), root=str(tests.parent))
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    reached: list[str] = []
    for line in process.stdout:
        reached.append(line.strip())
        if len(reached) > survive:
            process.kill()
            break
        process.stdin.write("\n")
        process.stdin.flush()
    process.communicate()
    return reached


@pytest.mark.slow
def test_import_killed_at_every_stage(coe: Coe, tmp_path: Path) -> None:
    arguments = ["models", "import", str(write_gguf(tmp_path / "a.gguf")), "--name", "mine", "--provider", "cpu"]
    target = coe.models / "mine"
    for survive in range(50):
        reached = stages_until_killed(arguments, survive)
        if target.exists():
            check_files("mine", target)
        if len(reached) <= survive:
            break
        if reached[-1] != "after put_in_place":
            assert not target.exists(), reached[-1]
        else:
            assert coe("models", "rm", "mine").code == 0
    assert {"converted model.onnx", "before write_manifest", "before put_in_place", "after put_in_place"} <= set(
        reached
    )
    assert coe.left_over == []


@pytest.mark.slow
def test_pull_killed_at_every_stage(coe: Coe, hub: Hub, published: dict[str, bytes]) -> None:
    """With the optimizing that is a part of it; what was fetched is not fetched again."""
    target = coe.models / "tiny"
    for survive in range(50):
        reached = stages_until_killed(["models", "pull", "tiny"], survive)
        if target.exists():
            check_files("tiny", target)
        if len(reached) <= survive:
            break
        assert target.exists() == (reached[-1] == "after put_in_place"), reached[-1]
        if target.exists():
            break
    stages = {
        "before fetch",
        "after fetch",
        "after _check",
        "before write_pruned",
        "after _prove",
        "before put_in_place",
    }
    assert stages <= set(reached) and reached[-1] == "after put_in_place"
    assert len(hub.ranges("model.onnx.data")) == 1
    assert coe("models", "pull", "tiny").code == 0
    assert coe.left_over == []
    assert coe("models", "verify", "tiny").code == 0


@pytest.mark.slow
def test_optimize_killed_at_every_stage(coe: Coe) -> None:
    folder = write_tiny_model(coe.models / "tiny")
    original = (folder / "model.onnx").read_bytes()
    for survive in range(50):
        reached = stages_until_killed(["models", "optimize", "tiny"], survive)
        check_files("tiny", folder)
        if len(reached) <= survive or reached[-1] == "after put_in_place":
            break
        assert (folder / "model.onnx").read_bytes() == original, reached[-1]
    assert reached[-1] == "after put_in_place"
    assert {"before write_pruned", "before _prove", "before put_in_place"} <= set(reached)
    assert (folder / "original_graph.pb").read_bytes() == original
    assert coe("models", "optimize", "tiny").code == 0
    assert coe.left_over == []


@pytest.mark.parametrize(
    ("done", "total", "options", "text"),
    [
        (
            3 * 2**20,
            12 * 2**20,
            {"is_bytes": True, "speed": 2.0**20, "left_s": 9.4},
            "3 of 12 MB · 1.0 MB/s · 0:09 left",
        ),
        (2**30, None, {"is_bytes": True, "speed": 2.0**20}, "1 GB · 1.0 MB/s"),
        (
            2**30,
            5 * 2**30,
            {"is_bytes": True, "speed": 2.0**20, "left_s": 4096.0},
            "1.0 of 5 GB · 1.0 MB/s · 1:08:16 left",
        ),
        (0.4, 1.0, {"is_bytes": False}, "40%"),
        (0, None, {"is_bytes": False}, ""),
    ],
)
def test_progress_says_size_speed_and_time_left(
    done: float, total: float | None, options: dict[str, Any], text: str
) -> None:
    assert amount(done, total, **options) == text
