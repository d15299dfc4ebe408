"""`coe models show`, `verify` and `rm` on a tiny model that really runs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, Literal

import pytest
from operating_system import make_link

from coe_cli.runtime.college import resolver
from coe_cli.runtime.folders import folders
from coe_cli.runtime.model_folder.on_disk import spec_from_folder
from coe_cli.runtime.routing.shared_router import SharedRouter
from coe_cli.runtime.settings import read_catalog, read_profiles
from coe_cli.runtime.store import inventory
from coe_cli.runtime.store.integrity import write_manifest
from coe_cli.runtime.worker.protocol import Hello, Loaded
from coe_cli.runtime.worker.single_worker import load_message
from coe_cli.runtime.worker.worker_process import WorkerProcess
from model_store.conftest import Coe
from model_store.tiny_model import SHAPE, write_tiny_model


@pytest.fixture
def tiny(coe: Coe) -> Path:
    return write_tiny_model(coe.models / "tiny")


def edit_config(folder: Path, **decoder: Any) -> None:
    path = folder / "genai_config.json"
    config = json.loads(path.read_text())
    config["model"]["decoder"].update(decoder)
    path.write_text(json.dumps(config))


def levels(run: Any) -> dict[str, str]:
    return {finding["check"]: finding["level"] for finding in run.json["findings"]}


def verify(coe: Coe, *options: str) -> Any:
    return coe("models", "verify", "tiny", "--format", "json", *options)


def test_show_has_these_keys(coe: Coe, tiny: Path) -> None:
    write_manifest(tiny, {"uri": "hf:someone/tiny", "licence": "MIT"})
    card = coe("models", "show", "tiny", "--format", "json", "-p", "embedded").json
    assert card.pop("folder") == str(tiny)
    files = {file["name"]: file for file in card.pop("files")}
    assert len(files["model.onnx.data"]["sha256"]) == 64
    assert files["coe_manifest.json"]["sha256"] is None
    assert 0.03 < card.pop("weights_mb") < 0.06
    plan = card.pop("plan")
    assert plan.keys() == {
        *("profile", "provider", "context_length", "weights_mb", "kv_mb", "activation_mb", "total_mb"),
    }
    assert plan["total_mb"] == pytest.approx(plan["weights_mb"] + plan["kv_mb"] + plan["activation_mb"], abs=0.2)
    assert card == {
        "schema_version": 1,
        "name": "tiny",
        "on_disk": True,
        "description": "",
        "licence": "MIT",
        "origin": "hf:someone/tiny",
        "provider": "cpu",
        "model_type": "llama",
        "experts": [],
        "context_length": 512,
        "shape": SHAPE,
        "attention": "MQA",
        "weight_formats": {"float": 1},
        "head_positions": "all",
        "chat_template": True,
        "cache": {"profile": "embedded", "context_length": 512, "kv_bytes_per_token": 128, "kv_mb": 0.1},
        "calibration": None,
        "duplicate_of": [],
        "builds": [],
        "runs_on": ["cpu"],
    }


def test_show_has_the_figures_of_the_plan_and_of_real_runs(coe: Coe, tiny: Path) -> None:
    from coe_cli.core.memory.calibration import CalibrationRecord
    from coe_cli.providers.installed import runtime_version
    from coe_cli.runtime.planning.calibration_store import CalibrationStore, model_digest

    version = runtime_version("cpu")
    assert version is not None
    key: dict[str, Any] = {
        "model_digest": model_digest(tiny),
        "provider": "cpu",
        "runtime_version": version,
        "adapter": "cpu",
    }
    before = coe("models", "show", "tiny", "--format", "json", "-p", "embedded").json
    assert before["calibration"] is None
    assert "no run is recorded yet" in coe("models", "show", "tiny").stdout
    store = CalibrationStore(coe.folder / "state")
    mb = 2**20
    kinds: list[tuple[Literal["load", "generation"], int, int]] = [
        ("load", 100 * mb, 80 * mb),
        ("generation", 10 * mb, 20 * mb),
    ]
    for kind, predicted, measured in kinds:
        store.record(
            CalibrationRecord(
                **key, kind=kind, predicted_bytes=predicted, measured_bytes=measured, at_s=1_700_000_000.0
            )
        )
    card = coe("models", "show", "tiny", "--format", "json", "-p", "embedded").json
    assert card["calibration"] == {
        "load_mb": 80.0,
        "slot_ratio": 2.0,
        "error": pytest.approx((100 / 80 + 10 / 20) / 2 - 1),
        "measurements": 2,
        "newest_at": "2023-11-14T22:13:20+00:00",
        "runtime_version": version,
        "adapter": "cpu",
    }
    assert card["plan"]["weights_mb"] == 80.0
    slot = ("kv_mb", "activation_mb")
    assert sum(card["plan"][k] for k in slot) == pytest.approx(2 * sum(before["plan"][k] for k in slot), abs=0.2)
    assert "80 MB after a load, slots 2.00 × the plan's" in " ".join(coe("models", "show", "tiny").stdout.split())


def test_show_counts_in_the_profile_in_which_the_model_would_run(coe: Coe, tiny: Path) -> None:
    figures = [coe("models", "show", name, "--format", "json").json["plan"] for name in ("tiny", "law-LLM-DML")]
    assert [(plan["profile"], plan["provider"]) for plan in figures] == [("embedded", "cpu"), ("standard", "dml")]
    named = coe("models", "show", "tiny", "-p", "compact", "--format", "json").json
    assert named["plan"]["profile"] == named["cache"]["profile"] == "compact"


def test_show_of_a_model_that_is_not_on_disk(coe: Coe) -> None:
    card = coe("models", "show", "law-LLM-DML", "--format", "json").json
    assert (card["on_disk"], card["attention"], card["weight_formats"]) == (False, "MHA", None)
    assert card["cache"] == {"profile": "standard", "context_length": 2048, "kv_bytes_per_token": 524288, "kv_mb": 1024}
    assert "coe models pull law-LLM-DML" in coe("models", "show", "law-LLM-DML").stdout


def test_show_names_the_same_weights_under_another_name(coe: Coe, tiny: Path) -> None:
    shutil.copytree(tiny, coe.models / "again")
    write_tiny_model(coe.models / "other", seed=9)
    assert coe("models", "show", "tiny", "--format", "json").json["duplicate_of"] == ["again"]


def test_weights_that_differ_between_the_samples_are_told_apart_by_their_digests(coe: Coe, tiny: Path) -> None:
    data = bytearray(8 * 2**20)
    for name, value in (("tiny", 0), ("other", 1)):
        folder = write_tiny_model(coe.models / name)
        data[300_000] = value
        (folder / "model.onnx.data").write_bytes(data)

    def same() -> list[str]:
        return coe("models", "show", "tiny", "--format", "json").json["duplicate_of"]

    assert same() == ["other"], "without a record the samples count"
    for name in ("tiny", "other"):
        write_manifest(coe.models / name, {})
    assert same() == []


def test_a_sound_model_passes_and_gives_its_tokens_again(coe: Coe, tiny: Path) -> None:
    write_manifest(tiny, {})
    first, second = verify(coe), verify(coe)
    assert (first.code, second.code) == (0, 0)
    assert set(levels(second).values()) == {"ok"}
    assert "recorded for the next time" in first.stdout
    assert "gives the recorded tokens" in second.stdout
    assert coe("models", "verify", "tiny").code == 0


def test_a_model_for_a_device_that_is_not_here_is_checked_as_far_as_it_goes(coe: Coe, tiny: Path) -> None:
    write_manifest(tiny, {})
    edit_config(tiny, session_options={"provider_options": [{"cuda": {}}]})
    result = verify(coe)
    assert (result.code, levels(result)["golden answer"]) == (4, "warning"), "the digests have changed"
    write_manifest(tiny, {})
    result = verify(coe)
    assert (result.code, levels(result)["golden answer"], levels(result)["config"]) == (0, "warning", "ok")
    assert "built for cuda, which is not installed here" in result.stdout


def test_a_model_that_computes_something_else_is_caught(coe: Coe, tiny: Path, tmp_path: Path) -> None:
    verify(coe)
    weights = (write_tiny_model(tmp_path / "broken", seed=1) / "model.onnx.data").read_bytes()
    (tiny / "model.onnx.data").write_bytes(weights)
    caught = verify(coe)
    assert caught.code == 4
    assert levels(caught)["golden answer"] == "error"
    assert levels(verify(coe, "--accept"))["golden answer"] == "ok"
    assert levels(verify(coe))["golden answer"] == "ok"


def test_answers_that_differ_under_another_runtime_are_a_warning(coe: Coe, tiny: Path) -> None:
    verify(coe)
    path = coe.folder / "state" / "golden_answers" / "tiny.json"
    content = json.loads(path.read_text())
    content["cpu"]["oga_version"] = "0.1"
    content["cpu"]["pieces"][1][0] = "§"
    path.write_text(json.dumps(content))
    result = verify(coe)
    assert (result.code, levels(result)["golden answer"]) == (0, "warning")
    assert "--accept" in result.stdout


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("num_hidden_layers", 3, "3 layers, the graph has 2"),
        ("num_key_value_heads", 2, "2 KV heads, the graph has 1"),
        ("head_size", 64, "64 head size, the graph has 8"),
    ],
)
def test_a_configuration_that_contradicts_the_graph(coe: Coe, tiny: Path, key: str, value: int, says: str) -> None:
    edit_config(tiny, **{key: value})
    result = verify(coe)
    assert result.code == 4
    assert says in result.stdout
    assert "golden answer" not in levels(result), "a model that is wrong is not loaded"


def test_changed_truncated_and_missing_files(coe: Coe, tiny: Path) -> None:
    write_manifest(tiny, {})
    data = tiny / "model.onnx.data"
    whole = data.read_bytes()
    data.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    assert "model.onnx.data has changed" in verify(coe).stdout
    data.write_bytes(whole[:-1])
    assert levels(verify(coe))["external data"] == "error"
    data.unlink()
    result = verify(coe, "--no-run")
    assert (result.code, levels(result)["external data"], levels(result)["digests"]) == (4, "error", "error")
    (tiny / "model.onnx").write_bytes(b"nonsense")
    assert levels(verify(coe)) == {"graph": "error"}
    (tiny / "genai_config.json").unlink()
    assert levels(verify(coe)) == {"config": "error"}


def test_weights_outside_of_the_folder_are_refused(coe: Coe, tiny: Path) -> None:
    outside = coe.folder / "outside.data"
    shutil.move(tiny / "model.onnx.data", outside)
    make_link(tiny / "model.onnx.data", outside)
    result = verify(coe)
    assert (result.code, levels(result)["external data"]) == (4, "error")
    assert "outside of the model's folder" in result.stdout


@pytest.mark.parametrize("graph", ["/etc/passwd", "../other/model.onnx", "C:\\model.onnx", "a/../../b.onnx", ""])
def test_a_graph_outside_of_the_folder_is_refused_everywhere(coe: Coe, tiny: Path, graph: str) -> None:
    edit_config(tiny, filename=graph)
    for command in (("verify", "tiny"), ("show", "tiny"), ("optimize", "tiny")):
        result = coe("models", *command)
        text = " ".join((result.stdout + result.stderr).split())
        assert (result.code, "outside of its folder" in text) == (4, True), command
    assert coe("doctor", "-p", "embedded").code == 1
    (row,) = [row for row in coe("models", "list", "--format", "json").json["models"] if row["name"] == "tiny"]
    assert "outside of its folder" in row["problem"]
    listed = " ".join(coe("models", "list").stderr.split())
    assert f"{row['problem']}. {row['hint']}" in listed and "models pull" not in row["hint"]


@pytest.mark.parametrize("where", ["model", "decoder", "root"])
def test_keys_of_a_newer_oga_are_left_out_and_named(coe: Coe, tiny: Path, where: str) -> None:
    path = tiny / "genai_config.json"
    config = json.loads(path.read_text())
    {"model": config["model"], "decoder": config["model"]["decoder"], "root": config}[where]["warp_core"] = {
        "factor": 9
    }
    path.write_text(json.dumps(config))
    assert coe("models", "show", "tiny").code == 0
    result = verify(coe)
    assert result.code == 0, result.stdout
    assert "warp_core is not used" in result.stdout


def test_tokenizer_and_template_that_do_not_work(coe: Coe, tiny: Path) -> None:
    facts = json.loads((tiny / "tokenizer_config.json").read_text())
    (tiny / "tokenizer_config.json").write_text(json.dumps(facts | {"chat_template": "{{ nothing.at.all }}"}))
    assert levels(verify(coe, "--no-run"))["chat template"] == "error"
    (tiny / "tokenizer_config.json").write_text(json.dumps(facts | {"chat_template": "hello"}))
    assert "drops the question" in verify(coe, "--no-run").stdout
    (tiny / "tokenizer.json").write_text("{}")
    assert levels(verify(coe, "--no-run"))["tokenizer"] == "error"


def test_a_state_folder_that_cannot_be_written_is_not_the_models_fault(coe: Coe, tiny: Path) -> None:
    (coe.folder / "state").mkdir(exist_ok=True)
    (coe.folder / "state" / "golden_answers").write_text("a file")
    result = verify(coe)
    assert (result.code, levels(result)["golden answer"]) == (0, "warning")
    assert "loads and answers" in result.stdout and "COE_STATE_DIR" in result.stdout


def test_a_worker_that_dies_is_a_finding(coe: Coe, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import coe_cli.runtime.worker.worker_process as worker_process

    monkeypatch.setattr(worker_process, "_START", "raise SystemExit(3)")
    result = verify(coe)
    assert (result.code, levels(result)["golden answer"]) == (4, "error")
    assert "ended with code 3" in result.stdout


def test_rm_takes_the_model_and_nothing_else(coe: Coe, tiny: Path) -> None:
    write_tiny_model(coe.models / "other")
    verify(coe)
    removed = coe("models", "rm", "tiny")
    assert removed.code == 0
    assert "is removed" in removed.stderr
    assert not tiny.exists()
    assert (coe.models / "other" / "model.onnx").exists()
    assert coe.left_over == []
    assert not (coe.folder / "state" / "golden_answers" / "tiny.json").exists()
    assert coe("models", "rm", "tiny").code == 4


def test_a_model_that_is_removed_while_models_are_listed(coe: Coe, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def both(models_dir: Path) -> dict[str, Path]:
        return {"gone": coe.models / "gone", "tiny": tiny}

    monkeypatch.setattr(inventory, "models_on_disk", both)
    rows = {row["name"]: row for row in coe("models", "list", "--format", "json").json["models"] if row["on_disk"]}
    assert rows["gone"]["problem"] and not rows["tiny"]["problem"]
    monkeypatch.setattr(resolver, "models_on_disk", both)
    catalog, profile = read_catalog(), read_profiles().select("embedded")
    served = resolver.RequestResolver(catalog, coe.models, profile, SharedRouter(catalog, folders()))
    assert "tiny" in dict(served.names())


def test_rm_gives_up_an_install_that_broke_off(coe: Coe) -> None:
    part = coe.models / ".partial-tiny" / "download" / "model.onnx.data.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(3 * 2**20))
    findings = coe("doctor", "--format", "json", "-p", "embedded").json["findings"]
    (found,) = [finding for finding in findings if "broke off" in finding["message"]]
    assert "holds 3 MB" in found["message"] and "coe models rm tiny" in found["fix"]
    removed = coe("models", "rm", "tiny")
    assert (removed.code, "3 MB are free again" in removed.stderr) == (0, True)
    assert coe.left_over == []
    assert coe("models", "rm", "tiny").code == 4


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_rm_of_a_link_leaves_the_folder_that_it_leads_to(coe: Coe, tmp_path: Path) -> None:
    elsewhere = write_tiny_model(tmp_path / "elsewhere")
    make_link(coe.models / "linked", elsewhere)
    assert coe("models", "rm", "linked").code == 0
    assert not (coe.models / "linked").is_symlink()
    assert (elsewhere / "model.onnx").exists()


@pytest.mark.parametrize(
    "name", ["..", "../models", "/etc", "a/b", "a\\b", ".hidden", "CON", "nul.txt", "x.", "", "a b"]
)
def test_a_name_is_never_a_path(coe: Coe, tiny: Path, name: str) -> None:
    for command in ("rm", "verify"):
        result = coe("models", command, "--", name)
        assert result.code == 2
        assert "cannot be the name of a model" in result.stderr
    assert tiny.exists()


def test_rm_asks_the_running_college(coe: Coe, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COE_NO_SERVE")
    monkeypatch.setattr("sys.stdin", None)
    try:
        assert coe("serve", "--keep-alive", "2m").code == 0
        assert coe("ask", "--no-live", "-m", "tiny", "--max-tokens", "2", "hello").code == 0
        refused = coe("models", "rm", "tiny")
        assert (refused.code, tiny.exists()) == (1, True)
        assert "coe stop tiny" in refused.stderr and "--force" in refused.stderr
        assert coe("stop", "tiny").code == 0
        assert coe("models", "rm", "tiny").code == 0
    finally:
        coe("stop")
    assert not tiny.exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows itself refuses to remove a mapped file")
def test_rm_refuses_while_a_worker_holds_the_model(coe: Coe, tiny: Path) -> None:
    worker = WorkerProcess()
    try:
        worker.send(load_message(spec_from_folder("tiny", tiny)))
        assert isinstance(worker.receive(60), Hello)
        assert isinstance(worker.receive(60), Loaded)
        refused = coe("models", "rm", "tiny")
        assert (refused.code, tiny.exists()) == (1, True)
        assert f"in use by process {worker.pid}" in refused.stderr and "--force" in refused.stderr
        assert coe("models", "rm", "tiny", "--force").code == 0
        assert not tiny.exists()
    finally:
        worker.kill()
