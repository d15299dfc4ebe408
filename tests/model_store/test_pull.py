"""`coe models pull` from a hub that breaks off, lies and dawdles, and from files and wheels with tricks in them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path

import pytest
from conftest import eventually

from coe_cli.runtime.settings import load_catalog
from coe_cli.runtime.store.integrity import check_files
from model_store.conftest import Coe, Run, fetched
from model_store.hub_server import COMMIT, Hub
from model_store.tiny_model import catalog_entry, write_tiny_model

SHIPPED = Path(__file__).parents[2] / "profiles"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_installed(coe: Coe, published: dict[str, bytes], name: str = "tiny") -> None:
    installed = files_of(coe.models / name)
    assert json.loads(installed.pop("coe_manifest.json"))["files"].keys() == published.keys()
    assert installed == published
    assert coe.left_over == []
    check_files(name, coe.models / name)


def assert_nothing(coe: Coe, name: str = "tiny") -> None:
    assert not (coe.models / name).exists()


def pull(coe: Coe, *arguments: str) -> Run:
    return coe("models", "pull", "--as-is", *arguments)


def test_a_catalog_model_is_fetched_pinned_and_recorded(coe: Coe, hub: Hub, published: dict[str, bytes]) -> None:
    result = pull(coe, "tiny")
    assert result.code == 0, result.stderr
    assert "Fetching someone/tiny" in result.stderr and "tiny is ready" in result.stderr
    assert_installed(coe, published)
    origin = json.loads((coe.models / "tiny" / "coe_manifest.json").read_text())["origin"]
    assert origin == {"uri": "hf:someone/tiny", "revision": COMMIT, "sha256": None, "licence": "CC0-1.0"}
    assert all(f"/resolve/{COMMIT}/" in path for _, path, _ in hub.requests if "/resolve/" in path)
    assert coe("models", "verify", "tiny").code == 0


def test_a_model_that_is_there_is_not_fetched_again_unless_forced(
    coe: Coe, hub: Hub, published: dict[str, bytes], tmp_path: Path
) -> None:
    pull(coe, "tiny")
    hub.requests.clear()
    assert pull(coe, "tiny").code == 0
    assert hub.requests == []
    hub.repositories.clear()
    hub.add_folder("someone/tiny", write_tiny_model(tmp_path / "newer", seed=5))
    assert pull(coe, "tiny", "--force").code == 0
    assert_installed(coe, hub.repositories["someone/tiny"])


def test_a_failed_forced_pull_leaves_the_old_model(coe: Coe, hub: Hub, published: dict[str, bytes]) -> None:
    pull(coe, "tiny")
    hub.tampered["model.onnx"] = b"x" * len(published["model.onnx"])
    assert pull(coe, "tiny", "--force").code == 4
    check_files("tiny", coe.models / "tiny")


def test_an_address_with_revision_and_folder(coe: Coe, hub: Hub, tmp_path: Path) -> None:
    hub.add_folder("someone/many", write_tiny_model(tmp_path / "a"), "cpu/int4/")
    hub.add_folder("someone/many", write_tiny_model(tmp_path / "b", seed=2), "cuda/")
    hub.repositories["someone/many"]["cpu/int4/setup.py"] = b"import os"
    hub.repositories["someone/many"]["cpu/int4/pytorch_model.bin"] = b"pickle"
    result = pull(coe, "hf:someone/many@v1.0/cpu/int4")
    assert result.code == 0, result.stderr
    assert any(path.endswith("/revision/v1.0") for _, path, _ in hub.requests)
    assert not any("cuda" in path or "setup.py" in path or "pytorch_model" in path for _, path, _ in hub.requests)
    assert_installed(coe, files_of(tmp_path / "a"), "int4")


@pytest.mark.long
@pytest.mark.parametrize("after", [0, 1, 5000, 20_000])
def test_a_connection_that_drops_is_taken_up_again(coe: Coe, hub: Hub, published: dict[str, bytes], after: int) -> None:
    hub.drop_after["model.onnx.data"] = [after]
    assert pull(coe, "tiny").code == 0
    assert_installed(coe, published)


def test_a_pull_that_gave_up_goes_on_where_it_was(coe: Coe, hub: Hub, published: dict[str, bytes]) -> None:
    hub.tampered["genai_config.json"] = bytes(reversed(published["genai_config.json"]))  # seen when all have come
    failed = pull(coe, "tiny")
    assert failed.code == 4
    assert "goes on from there" in failed.stderr
    assert_nothing(coe)
    assert coe("models", "list", "--format", "json").json["models"][0]["on_disk"] is False
    hub.tampered.clear()
    hub.requests.clear()
    assert pull(coe, "tiny").code == 0
    assert_installed(coe, published)
    assert hub.ranges("model.onnx.data") == [], "the large file was there already"


@pytest.mark.parametrize("file", ["model.onnx.data", "model.onnx", "genai_config.json"])
def test_a_wrong_digest_is_refused(coe: Coe, hub: Hub, published: dict[str, bytes], file: str) -> None:
    hub.tampered[file] = bytes(reversed(published[file]))
    result = pull(coe, "tiny")
    assert result.code == 4
    assert file in result.stderr
    assert ("SHA-256" in result.stderr) or ("not the file that the hub lists" in result.stderr)
    assert_nothing(coe)


@pytest.mark.parametrize("lie", [-1, 1, 1000])
def test_a_wrong_size_is_refused(coe: Coe, hub: Hub, published: dict[str, bytes], lie: int) -> None:
    hub.claimed_sizes["model.onnx.data"] = len(published["model.onnx.data"]) + lie
    result = pull(coe, "tiny")
    assert result.code == 4
    assert "model.onnx.data" in result.stderr
    assert_nothing(coe)


def test_a_model_larger_than_the_disk_is_refused_before_it_is_fetched(
    coe: Coe, hub: Hub, published: dict[str, bytes]
) -> None:
    hub.claimed_sizes["model.onnx.data"] = 10**16
    result = pull(coe, "tiny")
    assert result.code == 5
    assert "B free" in result.stderr
    assert not any("/resolve/" in path for _, path, _ in hub.requests)
    assert_nothing(coe)


def test_all_models_together_must_fit(coe: Coe, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**13, 0, 12_000 * 2**20))
    monkeypatch.setenv("COE_PROFILE", "standard")  # else the builds are those for the machine that tests
    result = coe("models", "pull", "--yes", "law-LLM-DML", "BioMistral-7B-DML", "sqlcoder-7b-2-DML")
    assert result.code == 5
    assert "law-LLM-DML, BioMistral-7B-DML, sqlcoder-7b-2-DML needs 15.4 GB" in result.stderr
    assert hub.requests == []


def test_a_models_folder_that_is_a_file(coe: Coe, published: dict[str, bytes]) -> None:
    coe.models.rmdir()
    coe.models.write_text("")
    result = pull(coe, "tiny")
    assert result.code == 4
    assert "cannot be written" in result.stderr


@pytest.mark.parametrize(
    "path",
    ["../evil", "a/../../evil", "/etc/evil", "..\\evil", "C:evil", "a//b", "x\x00y"],
)
def test_a_hub_that_names_files_outside_of_the_folder(
    coe: Coe, hub: Hub, published: dict[str, bytes], path: str
) -> None:
    published[path] = b"evil"
    result = pull(coe, "tiny")
    assert result.code == 4
    assert "outside of its folder" in result.stderr
    assert not any("/resolve/" in p for _, p, _ in hub.requests)
    assert_nothing(coe)


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("hf:someone", "not the address"),
        ("hf:../..", "not the address"),
        ("hf:someone/tiny/../../x", "not a path inside"),
        ("pypi:thing/../x", "not a path inside"),
        ("pypi:thing//etc/passwd", "not a path inside"),
        ("hf:someone/..", "not the address"),
        ("file:", "not the address"),
        ("file:/x/..", "cannot be the name"),
    ],
)
def test_addresses_that_climb(coe: Coe, hub: Hub, uri: str, says: str) -> None:
    result = pull(coe, uri)
    assert result.code == 2
    assert says in result.stderr
    assert hub.requests == []


def test_a_repository_without_an_oga_model_says_what_to_do(coe: Coe, hub: Hub) -> None:
    hub.repositories["someone/safetensors"] = {"model.safetensors": b"x" * 9000, "config.json": b"{}"}
    result = pull(coe, "hf:someone/safetensors")
    assert result.code == 4
    assert "coe models import" in result.stderr
    assert coe.left_over == []


def test_a_model_that_contradicts_itself_is_refused(coe: Coe, hub: Hub, published: dict[str, bytes]) -> None:
    config = json.loads(published["genai_config.json"])
    config["model"]["decoder"]["num_hidden_layers"] = 99
    published["genai_config.json"] = json.dumps(config).encode()
    result = pull(coe, "hf:someone/tiny")
    assert result.code == 4
    assert "99 layers, the graph has 2" in result.stderr
    assert_nothing(coe)


def test_a_model_of_another_shape_than_the_catalog_says_is_refused(
    coe: Coe, hub: Hub, published: dict[str, bytes]
) -> None:
    entry = catalog_entry("hf:someone/tiny")
    padded, other = dict(entry["shape"]) | {"vocab_size": 320}, dict(entry["shape"]) | {"num_hidden_layers": 3}  # type: ignore[call-overload]
    coe.catalog(tiny=entry | {"shape": other})
    result = pull(coe, "tiny")
    assert (result.code, "another shape" in result.stderr) == (4, True)
    assert_nothing(coe)
    coe.catalog(tiny=entry | {"shape": padded})
    assert pull(coe, "tiny").code == 0, "builds pad the vocabulary differently"


def test_external_data_outside_of_the_model_is_refused(coe: Coe, hub: Hub, published: dict[str, bytes]) -> None:
    published["model.onnx"] = published["model.onnx"].replace(b"model.onnx.data", b"../../etc/hosts")
    result = pull(coe, "tiny")
    assert result.code == 4
    assert "outside of the model's folder" in result.stderr


@pytest.mark.parametrize(
    ("refusal", "says"),
    [
        ((401, "GatedRepo"), "accept its licence"),
        ((403, "GatedRepo"), "accept its licence"),
        ((404, "RepoNotFound"), "does not exist"),
        ((404, "RevisionNotFound"), "no such revision"),
        ((500, ""), "not reachable"),
    ],
)
def test_refusals_are_explained(
    coe: Coe, hub: Hub, published: dict[str, bytes], refusal: tuple[int, str], says: str
) -> None:
    hub.refuse = refusal
    result = pull(coe, "tiny")
    assert result.code == 4
    assert says in result.stderr or "did not answer" in result.stderr


def test_the_token_goes_to_the_hub_and_is_not_shown(
    coe: Coe, hub: Hub, published: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret_of_the_user")
    result = pull(coe, "tiny")
    assert {headers.get("authorization") for _, _, headers in hub.requests} == {"Bearer hf_secret_of_the_user"}
    assert "hf_secret" not in result.stderr + result.stdout
    assert b"hf_secret" not in b"".join(files_of(coe.models).values())


def test_offline_means_offline(
    coe: Coe, hub: Hub, published: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = pull(coe, "tiny")
    assert result.code == 4
    assert "HF_HUB_OFFLINE is set. Unset HF_HUB_OFFLINE" in result.stderr
    assert hub.requests == []


def test_the_next_source_is_tried(coe: Coe, hub: Hub, tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "local")
    coe.catalog(tiny=catalog_entry("hf:no/such", sources=[{"uri": "hf:no/such"}, {"uri": f"file:{folder}"}]))
    assert pull(coe, "tiny").code == 0
    assert_installed(coe, files_of(folder))


def test_a_pinned_file_must_have_its_digest(coe: Coe, tmp_path: Path) -> None:
    source = {"uri": f"file:{write_tiny_model(tmp_path / 'local') / 'model.onnx'}", "sha256": "0" * 64}
    coe.catalog(tiny=catalog_entry("", sources=[source]))
    assert "has SHA-256" in pull(coe, "tiny").stderr
    assert_nothing(coe)


def test_several_models_and_one_that_fails(coe: Coe, hub: Hub, tmp_path: Path) -> None:
    entries = {}
    for number, name in enumerate("abc"):
        hub.add_folder(f"someone/{name}", write_tiny_model(tmp_path / name, seed=number))
        entries[name] = catalog_entry(f"hf:someone/{name}")
    del hub.repositories["someone/b"]
    coe.catalog(**entries)
    result = pull(coe, "a", "b", "c", "a")
    assert result.code == 4
    assert "model `b` could not be fetched" in result.stderr
    assert "1 of 3 models are not installed: b" in result.stderr
    for name in "ac":
        assert_installed_beside(coe, name)
        assert f"{name} is ready" in result.stderr


def assert_installed_beside(coe: Coe, name: str) -> None:
    check_files(name, coe.models / name)


SIX = (
    "DeepSeek-R1-Distill-Qwen-7B",
    "Qwen2.5-Coder-7B",
    "Qwen2.5-Math-7B",
    "BioMistral-7B",
    "sqlcoder-7b-2",
    "law-LLM",
)


@pytest.mark.long
@pytest.mark.parametrize("options", [("--all",), ("-p", "standard"), tuple(f"{name}-DML" for name in SIX)])
def test_the_six_specialists_come_from_their_repositories(
    coe: Coe, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    """The shipped catalog's own sources; only the shapes are those of the tiny models that the hub has in their place."""
    monkeypatch.setenv("COE_PROFILE", "standard")  # else the builds are those for the machine that tests
    shipped = load_catalog([SHIPPED / "experts.yaml"]).models
    entries = {}
    for number, name in enumerate(SIX):
        entry = shipped[f"{name}-DML"]
        assert [source.uri for source in entry.sources] == [f"hf:JThomas-CoE/{name}-INT4-DML"]
        folder = write_tiny_model(tmp_path / name, seed=number)
        config = folder / "genai_config.json"
        config.write_text(config.read_text().replace('"provider_options": []', '"provider_options": [{"dml": {}}]'))
        hub.add_folder(f"JThomas-CoE/{name}-INT4-DML", folder)
        entries[f"{name}-DML"] = catalog_entry(entry.sources[0].uri, provider="dml")
    hub.add_folder("someone/tiny", write_tiny_model(tmp_path / "small"))
    coe.catalog(**entries, **{"smollm2-135m": catalog_entry("hf:someone/tiny"), "qwen2.5-1.5b-instruct": None})
    result = coe("models", "pull", "--yes", *options)
    assert result.code == 0, result.stderr
    for number, name in enumerate(SIX):
        check_files(f"{name}-DML", coe.models / f"{name}-DML")
        data = (coe.models / f"{name}-DML" / "model.onnx.data").read_bytes()
        assert data == (tmp_path / name / "model.onnx.data").read_bytes(), number
        assert f"{name}-DML is ready" in result.stderr
    assert (coe.models / "smollm2-135m").exists() == (options == ("--all",))
    assert coe.left_over == []


def test_profile_means_the_models_of_its_device(coe: Coe, hub: Hub, tmp_path: Path) -> None:
    hub.add_folder("someone/tiny", write_tiny_model(tmp_path / "published"))
    coe.catalog(
        tiny=catalog_entry("hf:someone/tiny"),
        gpu=catalog_entry("hf:someone/gpu", provider="cuda"),
        **{"smollm2-135m": catalog_entry("hf:someone/tiny"), "qwen2.5-1.5b-instruct": None},
    )
    assert pull(coe, "-p", "embedded").code == 0
    assert sorted(path.name for path in coe.models.iterdir() if not path.name.startswith(".")) == [
        "smollm2-135m",
        "tiny",
    ]


def test_a_file_that_is_not_there_is_not_the_networks_fault(coe: Coe, tmp_path: Path) -> None:
    result = pull(coe, f"file:{tmp_path}/none")
    assert result.code == 4
    assert "none does not exist. Name a folder" in result.stderr and "network" not in result.stderr


def test_nothing_named_is_a_usage_error(coe: Coe) -> None:
    assert pull(coe).code == 2
    assert pull(coe, "no-such-model").code == 4


# Real processes: killed, and two at once


def start(*arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "coe_cli", "models", "pull", "--as-is", *arguments]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


@pytest.mark.long
@pytest.mark.parametrize("request_number", [1, 2, 4, 8, 11])
def test_killed_at_any_request_and_then_pulled_again(
    coe: Coe, hub: Hub, published: dict[str, bytes], request_number: int
) -> None:
    reached, killed = threading.Event(), threading.Event()

    def hold(method: str, path: str) -> None:
        if len(hub.requests) >= request_number:
            reached.set()
            killed.wait()

    hub.on_request = hold
    process = start("tiny")
    eventually(lambda: reached.is_set() or process.poll() is not None)
    process.kill()
    process.communicate()
    killed.set()
    assert reached.is_set()
    assert_nothing(coe)
    hub.on_request = None
    assert pull(coe, "tiny").code == 0
    assert_installed(coe, published)


def test_killed_in_the_middle_of_a_file_it_goes_on_from_there(coe: Coe, hub: Hub, published: dict[str, bytes]) -> None:
    published["model.onnx.data"] += bytes(24 * 2**20)
    hub.stall_after["model.onnx.data"] = 22 * 2**20  # the hub's client writes 10 MB at a time
    process = start("tiny")
    fetched(coe, process, 2**20)
    process.kill()
    process.communicate()
    assert_nothing(coe)
    hub.stall_after.clear()
    hub.requests.clear()
    assert pull(coe, "tiny").code == 0
    assert_installed(coe, published)
    (asked,) = hub.ranges("model.onnx.data")
    assert asked.startswith("bytes=") and asked != "bytes=0-"


def test_a_model_of_ones_own_is_not_fetched(coe: Coe) -> None:
    write_tiny_model(coe.models / "mine")
    result = coe("models", "pull", "mine", "--force")
    assert (result.code, result.stdout) == (4, "")
    assert "coe models import FILE --name mine --force" in result.stderr and "Did you mean" not in result.stderr


@pytest.mark.long
def test_two_pulls_of_one_model_fetch_it_once(coe: Coe, hub: Hub, published: dict[str, bytes]) -> None:
    hub.chunk_pause_s = 0.02
    first, second = start("tiny"), start("tiny")
    outputs = [process.communicate(timeout=120)[1].decode() for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), outputs
    assert len(hub.ranges("model.onnx.data")) == 1
    assert_installed(coe, published)


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_leaves_at_once_and_nothing_visible(coe: Coe, hub: Hub, published: dict[str, bytes]) -> None:
    import signal

    hub.silent = True
    process = start("tiny", "law-LLM-DML")
    eventually(lambda: hub.requests)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=200)
    assert process.returncode == 130
    assert_nothing(coe)
