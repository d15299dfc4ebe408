"""`coe models optimize`, alone and as a part of pull: the head on the last position, proved before it counts."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import onnx
import pytest

from coe_cli.runtime.conversion import optimize as optimize_module
from coe_cli.runtime.conversion.agreement import PROMPTS
from coe_cli.runtime.conversion.fit_graph import NotPrunable, write_pruned
from coe_cli.runtime.model_folder.graph_files import read_graph
from coe_cli.runtime.model_folder.on_disk import spec_from_folder
from coe_cli.runtime.store.golden_answer import continue_prompts
from coe_cli.runtime.store.integrity import check_files, write_manifest
from model_store.conftest import Coe
from model_store.hub_server import Hub
from model_store.tiny_model import write_tiny_model


def positions(folder: Path) -> str | None:
    return {True: "last", False: "all", None: None}[read_graph(folder / "model.onnx").prunes_logits]


def test_a_model_is_optimized_and_says_the_same(coe: Coe) -> None:
    folder = write_tiny_model(coe.models / "tiny")
    write_manifest(folder, {"uri": "hf:someone/tiny"})
    graph, data = (folder / "model.onnx").read_bytes(), (folder / "model.onnx.data").read_bytes()
    before = continue_prompts(spec_from_folder("tiny", folder), PROMPTS, max_tokens=12)[1]
    result = coe("models", "optimize", "tiny")
    assert result.code == 0, result.stderr
    assert positions(folder) == "last"
    assert (folder / "original_graph.pb").read_bytes() == graph
    assert (folder / "model.onnx.data").read_bytes() == data
    assert continue_prompts(spec_from_folder("tiny", folder), PROMPTS, max_tokens=12)[1] == before
    check_files("tiny", folder)
    assert json.loads((folder / "coe_manifest.json").read_text())["origin"] == {"uri": "hf:someone/tiny"}
    assert coe.left_over == []
    again = coe("models", "optimize", "tiny")
    assert (again.code, "already" in again.stderr) == (0, True)


def test_logits_of_one_row_are_the_last_row_of_the_original(tmp_path: Path) -> None:
    import numpy as np
    import onnxruntime

    folder = write_tiny_model(tmp_path / "tiny", softcap=True)
    write_pruned(folder / "model.onnx", folder / "pruned.onnx")
    onnx.checker.check_model(str(folder / "pruned.onnx"))
    past = np.zeros((1, 1, 0, 8), np.float32)
    feed = {f"past_key_values.{layer}.{kind}": past for layer in range(2) for kind in ("key", "value")}
    feed |= {"input_ids": np.array([[5, 9, 200, 31]]), "attention_mask": np.ones((1, 4), np.int64)}
    outputs = []
    for name in ("model.onnx", "pruned.onnx"):
        session = onnxruntime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"])
        names = {item.name for item in session.get_inputs()}
        outputs.append(session.run(["logits"], {key: value for key, value in feed.items() if key in names})[0])
    assert outputs[1].shape == (1, 1, outputs[0].shape[2])
    np.testing.assert_allclose(outputs[1][:, 0], outputs[0][:, -1], rtol=1e-5, atol=1e-5)


def rewire(folder: Path, *nodes: onnx.NodeProto) -> None:
    """Let ``nodes`` make the logits out of what made them before, now called `before`."""
    path = folder / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        if "logits" in node.output:
            node.output[0] = "before"
    model.graph.node.extend(nodes)
    onnx.save(model, path)


@pytest.mark.parametrize("op", ["Softmax", "Relu"])
def test_a_head_of_an_unknown_form_is_left_alone(coe: Coe, op: str) -> None:
    folder = write_tiny_model(coe.models / "tiny")
    rewire(folder, onnx.helper.make_node(op, ["before"], ["logits"]))
    before = (folder / "model.onnx").read_bytes()
    result = coe("models", "optimize", "tiny")
    assert result.code == 1
    assert op in result.stderr
    assert (folder / "model.onnx").read_bytes() == before
    assert coe.left_over == []


def test_logits_that_mix_two_paths_are_left_alone(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "tiny")
    rewire(folder, onnx.helper.make_node("Add", ["before", "before"], ["logits"]))
    with pytest.raises(NotPrunable):
        write_pruned(folder / "model.onnx", folder / "pruned.onnx")


def test_a_rewrite_that_changes_the_answer_does_not_take_its_place(
    coe: Coe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = write_tiny_model(coe.models / "tiny")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def wrong(graph: Path, target: Path, logits: str = "logits") -> None:
        write_pruned(graph, target, logits)
        model = onnx.load(target, load_external_data=False)
        index = next(t for t in model.graph.initializer if t.name.endswith("/index"))
        index.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(index) + 1, index.name))
        onnx.save(model, target)  # the first position instead of the last

    monkeypatch.setattr(optimize_module, "write_pruned", wrong)
    result = coe("models", "optimize", "tiny")
    assert result.code == 1
    assert "something else" in result.stderr and "stays as it is" in result.stderr
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert coe.left_over == []


def test_a_model_that_cannot_be_loaded_here_is_left_alone(coe: Coe) -> None:
    folder = write_tiny_model(coe.models / "tiny")
    path = folder / "genai_config.json"
    config = json.loads(path.read_text())
    config["model"]["decoder"]["session_options"]["provider_options"] = [{"dml": {}}]
    path.write_text(json.dumps(config))
    result = coe("models", "optimize", "tiny")
    assert result.code == 1
    assert "cannot be proved here" in result.stderr and "on a machine that can load it" in result.stderr
    assert positions(folder) == "all"


def test_a_model_that_cannot_be_run_is_left_alone(coe: Coe) -> None:
    folder = write_tiny_model(coe.models / "tiny")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "tokenizer.json"}
    (folder / "tokenizer.json").write_text("{}")
    result = coe("models", "optimize", "tiny")
    assert result.code == 1
    assert "cannot be proved here" in result.stderr
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name in before} == before
    assert coe.left_over == []


def test_pull_optimizes_and_as_is_does_not(coe: Coe, hub: Hub, published: dict[str, bytes]) -> None:
    assert coe("models", "pull", "tiny").code == 0
    folder = coe.models / "tiny"
    assert positions(folder) == "last"
    assert (folder / "original_graph.pb").read_bytes() == published["model.onnx"]
    assert coe("models", "verify", "tiny").code == 0
    assert coe("models", "pull", "tiny", "--as-is", "--force").code == 0
    assert positions(folder) == "all"
    assert coe.left_over == []


def test_pull_of_a_model_for_another_device_says_that_it_stays_as_it_is(
    coe: Coe, hub: Hub, published: dict[str, bytes]
) -> None:
    published["genai_config.json"] = published["genai_config.json"].replace(
        b'"provider_options": []', b'"provider_options": [{"dml": {}}]'
    )
    result = coe("models", "pull", "tiny")
    assert result.code == 0
    assert "stays as it is" in result.stderr and "tiny is ready" in result.stderr
    assert positions(coe.models / "tiny") == "all"


@pytest.mark.long
def test_copies_where_there_are_no_links(coe: Coe, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_tiny_model(coe.models / "tiny")

    def refused(source: object, target: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refused)
    assert coe("models", "optimize", "tiny").code == 0
    check_files("tiny", folder)
    assert positions(folder) == "last"


@pytest.mark.long
def test_the_original_takes_no_part_in_sizes_or_duplicates(coe: Coe) -> None:
    folder = write_tiny_model(coe.models / "tiny")
    coe("models", "optimize", "tiny")
    shutil.copytree(folder, coe.models / "copy")
    (coe.models / "copy" / "original_graph.pb").unlink()
    rows = {row["name"]: row for row in coe("models", "list", "--format", "json").json["models"]}
    assert rows["tiny"]["duplicate_of"] == ["copy"]
    write_tiny_model(coe.models / "as-it-came")
    shown = coe("models", "show", "as-it-came", "--format", "json").json
    assert shown["duplicate_of"] == ["copy", "tiny"], "another graph over the same weights"
    assert rows["tiny"]["size_mb"] == rows["copy"]["size_mb"]
