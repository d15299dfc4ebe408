"""What comes with a model and is run or read by coe itself: chat templates, tokenizers, graphs with operators of others."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import pytest
from importing.configurations import write_folder
from model_store.conftest import Coe
from model_store.tiny_model import write_tiny_model
from onnx import TensorProto, helper

from coe_cli.core.models.onnx_external import Operator
from coe_cli.runtime.model_folder.graph_files import graph_needs
from coe_cli.runtime.prompts import prompts
from coe_cli.runtime.store.verify import verify
from hostile.zoo import edit_json

ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}"
GIGABYTE = "{{ '%1000000000d'|format(1) }}"
TEMPLATES = {"endless": (ENDLESS, "ran for more than"), "a gigabyte": (GIGABYTE, "chat template|1536 MB")}


@pytest.fixture
def short_limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    prompts.end_all()
    monkeypatch.setattr(prompts, "_own", prompts.Prompts(prompts.PromptLimits(stage_s=2.0)))
    yield
    prompts.end_all()


@pytest.mark.long
@pytest.mark.usefixtures("short_limits")
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_hostile_template_is_found_by_verify(coe: Coe, name: str) -> None:
    template, says = TEMPLATES[name]
    folder = write_tiny_model(coe.models / "beast")
    edit_json(folder / "tokenizer_config.json", lambda config: config.update(chat_template=template))
    done = coe("models", "verify", "beast", "--format", "json")
    assert done.code == 4
    errors = [line for line in done.json["findings"] if line["level"] == "error"]
    (found,) = errors
    assert found["check"] == "chat template" and "beast" in found["message"]
    assert any(word in found["message"] for word in says.split("|"))


@pytest.mark.long
@pytest.mark.usefixtures("short_limits")
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_hostile_template_is_not_imported(coe: Coe, tmp_path: Path, name: str) -> None:
    template, _ = TEMPLATES[name]
    source = hf_folder(tmp_path)
    edit_json(source / "tokenizer_config.json", lambda config: config.update(chat_template=template))
    done = coe("models", "import", str(source), "--name", "mine", "--precision", "int4")
    assert done.code == 4 and "mine" in done.stderr and "template" in done.stderr, done.stderr
    assert not (coe.models / "mine").exists() and not coe.left_over


def hf_folder(tmp_path: Path) -> Path:
    """A Hugging Face folder that can be imported, with the tiny model's tokenizer."""
    source = write_folder(tmp_path / "source", "llama", vocab_size=288)
    tiny = write_tiny_model(tmp_path / "tiny")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny / name, source / name)
    return source


def nested(path: Path) -> None:
    """A normalizer in normalizers, two hundred thousand deep."""
    depth = 200_000
    raw = json.loads(path.read_text())
    raw["normalizer"] = "HERE"
    deep = '{"type":"Sequence","normalizers":[' * depth + '{"type":"NFC"}' + "]}" * depth
    path.write_text(json.dumps(raw).replace('"HERE"', deep))


def exploding(path: Path) -> None:
    """Each letter becomes a thousand, three times."""

    def change(raw: dict[str, object]) -> None:
        replace = {"type": "Replace", "pattern": {"Regex": "."}, "content": "x" * 1000}
        raw["normalizer"] = {"type": "Sequence", "normalizers": [replace] * 3}

    edit_json(path, change)


@pytest.mark.long
@pytest.mark.usefixtures("short_limits")
@pytest.mark.parametrize("make", [nested, exploding])
def test_a_hostile_tokenizer_ends_no_process_but_the_one_for_prompts(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    folder = write_tiny_model(tmp_path / "beast")
    make(folder / "tokenizer.json")
    errors = [finding for finding in verify("beast", folder, tmp_path, run=False) if finding.level == "error"]
    assert [finding.check for finding in errors] == ["tokenizer"]
    assert "beast" in errors[0].message


def test_coe_itself_reads_no_tokenizer_to_verify_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)  # an import of it fails
    found = verify("tiny", write_tiny_model(tmp_path / "tiny"), tmp_path, run=False)
    assert [f.message for f in found if f.check == "tokenizer"] == ["258 tokens, gives a text back as it was"]


def with_operator(path: Path, *, defined: bool, branch: bool = False) -> None:
    model = onnx.load(path, load_external_data=False)
    node = helper.make_node("Evil", ["logits"], ["more"], name="/evil", domain="com.example\x1b[2J")
    if branch:
        inner = helper.make_graph([node], "inner", [], [helper.make_tensor_value_info("more", TensorProto.FLOAT, None)])
        node = helper.make_node("If", ["nothing"], ["evil"], then_branch=inner, else_branch=inner)
    model.graph.node.append(node)
    if defined:
        body = [helper.make_node("Identity", ["a"], ["b"])]
        opset = [helper.make_opsetid("", 18)]
        model.functions.append(helper.make_function("com.example\x1b[2J", "Evil", ["a"], ["b"], body, opset))
    onnx.save(model, path)


@pytest.mark.parametrize("branch", [False, True])
def test_an_operator_of_somebody_else_is_named(coe: Coe, branch: bool) -> None:
    folder = write_tiny_model(coe.models / "beast")
    with_operator(folder / "model.onnx", defined=False, branch=branch)
    assert graph_needs(folder / "model.onnx").unknown == {Operator("com.example\x1b[2J", "Evil"): "/evil"}
    (found,) = [f for f in verify("beast", folder, coe.folder, run=False) if f.level == "error"]
    assert found.check == "graph" and "`/evil` in model.onnx is a `com.example\\x1b[2J.Evil`" in found.message
    done = coe("models", "pull", f"file:{folder}", "--force")
    assert done.code == 4 and "loads no libraries" in done.stderr


def test_a_function_of_the_file_is_no_operator_of_somebody_else(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "tiny")
    with_operator(folder / "model.onnx", defined=True)
    assert not graph_needs(folder / "model.onnx").unknown
