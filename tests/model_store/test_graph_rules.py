"""What DirectML refuses, ignores or computes wrongly is found in a graph on any machine, and rewritten with the same result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from coe_cli.core.models.graph_check import graph_problems
from coe_cli.core.providers import spec_of
from coe_cli.runtime.conversion.agreement import PROMPTS, agreement
from coe_cli.runtime.model_folder.graph_files import check_model, graph_records
from coe_cli.runtime.model_folder.on_disk import spec_from_folder
from coe_cli.runtime.worker.first_logits import first_logits
from model_store.conftest import Coe
from model_store.tiny_dml import write_tiny_dml
from model_store.tiny_model import write_tiny_model

MS = "com.microsoft"
FORMS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "norms": ({}, {"fp16_norm"}),
    "rotary": ({"rotary_inside": True}, {"fp16_norm", "ignored_rotation"}),
    "packed": ({"rotary_inside": True, "packed_qkv": True}, {"fp16_norm", "ignored_rotation"}),
    "embedding": ({"quantized_embedding": True}, {"fp16_norm", "refused"}),
    "large": ({"embedding_scale": 600.0, "all_logits": True}, {"fp16_norm"}),
}
"""Options of the tiny decoder, and the kinds of problems that DirectML has with it."""


def kinds(folder: Path) -> set[str]:
    return {problem.kind for problem in check_model(spec_from_folder(folder.name, folder))}


@pytest.mark.long
@pytest.mark.parametrize("form", FORMS)
def test_a_graph_is_rewritten_for_directml_and_computes_the_same(coe: Coe, form: str) -> None:
    options, wanted = FORMS[form]
    folder = write_tiny_dml(coe.models / "tiny", **options)
    before = first_logits(spec_from_folder("tiny", folder), "cpu", PROMPTS)
    assert kinds(folder) == wanted
    found = coe("models", "verify", "tiny", "--no-run", "--format", "json").json["findings"]
    told = [finding for finding in found if finding["check"] == "operators"]
    assert {finding["fix"] for finding in told} == {"coe models optimize tiny"}
    assert all("node `/" in finding["message"] for finding in told)
    result = coe("models", "optimize", "tiny")
    assert result.code == 0, result.stderr
    assert kinds(folder) == set()
    compared = agreement(before, first_logits(spec_from_folder("tiny", folder), "cpu", PROMPTS))
    assert compared.agrees and compared.worst_cosine > 0.9999
    assert coe("models", "verify", "tiny", "--no-run").code == 0
    assert "already" in coe("models", "optimize", "tiny").stderr
    assert coe.left_over == []


def test_a_model_that_directml_refuses_does_not_run_on_it_as_doctor_sees_it(coe: Coe) -> None:
    write_tiny_dml(coe.models / "tiny", quantized_embedding=True)
    lines = [finding["message"] for finding in coe("doctor", "--format", "json").json["findings"]]
    assert any("GatherBlockQuantized" in line and line.startswith("tiny") for line in lines)
    assert not any("tiny runs on dml" in line for line in lines)


def one_node(tmp_path: Path, node: onnx.NodeProto, opset: int, element_type: int = TensorProto.FLOAT16) -> Path:
    values = [helper.make_tensor_value_info(name, element_type, [1, 4]) for name in node.input if name]
    outputs = [helper.make_tensor_value_info(node.output[0], element_type, None)]
    graph = helper.make_graph([node], "one", values, outputs)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(MS, 1)]
    path = tmp_path / "model.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=imports).SerializeToString())
    return path


CASES = [
    ("Sigmoid", "", 21, TensorProto.FLOAT16, {}, None),
    ("Cast", "", 22, TensorProto.FLOAT16, {"to": 1}, None),
    ("Cast", "", 23, TensorProto.FLOAT16, {"to": 1}, "of opset 23"),
    ("Cos", "", 22, TensorProto.FLOAT16, {}, "of opset 22"),
    ("Add", "", 21, TensorProto.BFLOAT16, {}, "for bfloat16"),
    ("Add", "ai.onnx", 21, TensorProto.FLOAT, {}, None),
    ("GatherBlockQuantized", MS, 21, TensorProto.FLOAT16, {}, ""),
    ("MatMulNBits", MS, 21, TensorProto.FLOAT16, {"bits": 8}, None),
    ("MatMulNBits", MS, 21, TensorProto.FLOAT16, {"bits": 2}, "with 2 bits"),
    ("RMSNormalization", "", 23, TensorProto.FLOAT16, {}, ""),
    ("Whatever", "some.one", 1, TensorProto.FLOAT, {}, ""),
]
"""Operator, domain, opset, type of its input, attributes; what DirectML has not, None where it has the node."""


@pytest.mark.parametrize(("operator", "domain", "opset", "kind", "attributes", "missing"), CASES)
def test_which_nodes_directml_has(
    tmp_path: Path, operator: str, domain: str, opset: int, kind: int, attributes: dict[str, int], missing: str | None
) -> None:
    node = helper.make_node(operator, ["a", "b"], ["c"], domain=domain, name="/here", **attributes)
    with graph_records(one_node(tmp_path, node, opset, kind)) as records:
        problems = graph_problems(records, spec_of("dml").graph)
        assert graph_problems(records, spec_of("cpu").graph) == []
    found = [(problem.operator, problem.node, problem.detail) for problem in problems if problem.kind == "refused"]
    assert found == ([] if missing is None else [(operator, "/here", missing)])


def test_logits_agree_or_not() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4, 100)).astype(np.float32)
    noise = logits + rng.normal(size=logits.shape).astype(np.float32) * 0.01
    assert agreement(logits, noise).agrees
    assert not agreement(logits, -logits).agrees
    assert not agreement(logits, np.full_like(logits, np.nan)).agrees
    assert not agreement(logits, np.zeros_like(logits)).agrees
    swapped = logits.copy()
    swapped[2, [logits[2].argmax(), logits[2].argmin()]] = swapped[2, [logits[2].argmin(), logits[2].argmax()]]
    assert agreement(logits, swapped).same_first == 3


def test_a_model_of_another_provider_is_left_alone(coe: Coe) -> None:
    write_tiny_model(coe.models / "tiny")
    checks = {
        finding["check"] for finding in coe("models", "verify", "tiny", "--no-run", "--format", "json").json["findings"]
    }
    assert "operators" not in checks
