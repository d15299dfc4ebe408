"""Models that an older recipe of coe wrote: said wherever they are looked at, with the command that writes them anew."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from coe_cli.core.importing.encodings import rules_for, table_encoding
from coe_cli.core.importing.ggml import BLOCK_TYPES
from coe_cli.core.importing.record import is_older, new_record
from coe_cli.core.providers import names, spec_of
from coe_cli.runtime.store.integrity import write_manifest
from model_store.conftest import Coe
from model_store.tiny_model import catalog_entry, write_tiny_model

RECIPE: dict[str, Any] = {"provider": "cpu", "precision": "int4", "version": rules_for("cpu", "int4").recipe}
TODAY = {"recipe": RECIPE, "matrices": {"Q4_K: 4 bits, blocks of 32, exact": 5, "Q8_0: 8 bits, blocks of 32, exact": 1}}
OLDER = "an older recipe of coe wrote it"
PULL = "coe models pull tiny --force"


def write_model(coe: Coe, record: Any, origin: dict[str, Any]) -> Path:
    folder = write_tiny_model(coe.models / "tiny")
    (folder / "coe_conversion.json").write_text(json.dumps(record))
    write_manifest(folder, origin)
    return folder


def said(coe: Coe, *arguments: str) -> str:
    result = coe(*arguments)
    assert result.code == 0, result.stderr
    return re.sub(r"\s+", " ", result.stdout + result.stderr)


@pytest.mark.parametrize(
    "record",
    [
        {"source": "a.gguf", "recipe": {"bits": 4, "block_size": 32}},
        {**TODAY, "matrices": {"Q4_K: 4 bits, blocks of 32, requantised by rounding": 5}},
        {**TODAY, "matrices": {"Q9_K: 4 bits, blocks of 32, exact": 5}},
        {**TODAY, "matrices": ["Q4_K"]},
        {**TODAY, "recipe": {**RECIPE, "precision": "int3"}},
        {**TODAY, "recipe": {**RECIPE, "version": 1}},
        {
            "recipe": {"provider": "cpu", "precision": "int4"},
            "matrices": {"Q6_K: 8 bits, blocks of 32, requantised": 1},
        },
        {**TODAY, "recipe": {**RECIPE, "version": "x"}},
        [],
    ],
)
def test_older_and_broken_records(record: Any) -> None:
    assert is_older(record)


def test_the_recipe_before_is_older_where_it_had_smaller_blocks() -> None:
    before = {"provider": "cpu", "precision": "int4"}
    assert not is_older({**TODAY, "recipe": before})
    odd_columns = {"Q6_K: 8 bits, blocks of 32, requantised": 1}
    assert not is_older({"recipe": RECIPE, "matrices": odd_columns}) and is_older(
        {"recipe": before, "matrices": odd_columns}
    )
    card, wide = {"provider": "webgpu", "precision": "int4"}, {"Q6_K: 8 bits, blocks of 128, requantised": 1}
    assert not is_older({"recipe": card, "matrices": {"Q6_K: 8 bits, blocks of 32, requantised": 1}})
    assert is_older({"recipe": card, "matrices": wide}) and not is_older({"recipe": RECIPE, "matrices": wide})


def test_what_was_written_for_cuda_before_is_older_and_the_record_of_today_is_not() -> None:
    """Where lengths were calculated on the card its answers are wrong."""
    matrices = {"Q4_0: 4 bits, blocks of 32, exact": 5}
    for version in ({}, {"version": 2}, {"version": 3}):
        assert is_older({"recipe": {"provider": "cuda", "precision": "int4", **version}, "matrices": matrices})
    for provider in names():
        precision = spec_of(provider).graph.precisions[0]
        assert not is_older(new_record("a.gguf", "llama", provider, precision, matrices)), provider


def test_each_command_says_it_and_none_of_a_record_of_today(coe: Coe) -> None:
    coe.catalog(tiny=catalog_entry("hf:someone/tiny"))
    folder = write_model(coe, {"source": "a.gguf", "recipe": {"bits": 4}}, {"uri": "hf:someone/tiny"})

    commands = (("models", "pull", "tiny"), ("models", "list"), ("models", "verify", "tiny", "--no-run"))
    for command in commands:
        words = said(coe, *command)
        assert OLDER in words and PULL in words, command
    findings = coe("doctor", "--format", "json", "-p", "embedded").json["findings"]
    assert [finding["fix"] for finding in findings if OLDER in finding["message"]] == [PULL]
    write_model(coe, TODAY, {"uri": "hf:someone/tiny"})
    assert not any(OLDER in said(coe, *command) for command in commands)
    (folder / "coe_conversion.json").unlink()
    assert OLDER not in said(coe, *commands[1])


def test_what_was_imported_is_to_be_imported_again(coe: Coe, tmp_path: Path) -> None:
    source = tmp_path / "my model.gguf"
    source.touch()
    write_model(coe, {}, {"uri": f"file:{source}", **RECIPE})
    fix = coe("models", "list", "--format", "json").json["models"][0]["hint"]
    assert "coe models import" in fix and "my model.gguf" in fix
    assert fix.endswith("--name tiny --provider cpu --precision int4 --force")
    source.unlink()
    fix = coe("models", "list", "--format", "json").json["models"][0]["hint"]
    assert f"{source} is not there any more" in fix and "coe models import FILE" in fix
    write_model(coe, {}, {"uri": "hf:someone/tiny-GGUF/a.gguf", **RECIPE})
    fix = coe("models", "list", "--format", "json").json["models"][0]["hint"]
    assert fix.startswith("coe models import hf:someone/tiny-GGUF/a.gguf --name tiny")


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_an_embedding_of_its_own_is_written_by_todays_recipe(precision: str) -> None:
    rules = rules_for("cpu", precision)
    for source_type in BLOCK_TYPES:
        for columns in (4096, 4099):
            label = f"{source_type}: {table_encoding(source_type, columns, rules).label()}"
            assert not is_older({"recipe": {**RECIPE, "precision": precision}, "matrices": {label: 1}}), label
