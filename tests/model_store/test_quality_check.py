"""`coe models verify --quality` on a model of random weights that the real converter made: what it finds, and refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coe_cli.core.findings import Level
from coe_cli.runtime.conversion.quality import Quality, check_quality, quality_finding
from coe_cli.runtime.importing.convert import convert
from coe_cli.runtime.progress import ignore
from coe_cli.runtime.store.integrity import write_manifest
from model_store.conftest import Coe
from model_store.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def converted(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted") / "mine"
    convert(llama, folder, provider="cpu", precision="int8", on_progress=ignore)
    write_manifest(folder, {"uri": f"file:{llama}"})
    return folder


@pytest.fixture
def mine(coe: Coe, converted: Path) -> Path:
    return Path(shutil.copytree(converted, coe.models / "mine"))


def verify(coe: Coe, *options: str) -> Any:
    command = ("models", "verify", "mine", "--no-run", "--format", "json", "--quality-tokens", "600")
    return coe(*command, *options)


@pytest.mark.long
def test_quality_is_measured_against_the_recorded_source(coe: Coe, mine: Path) -> None:
    run = verify(coe, "--quality")
    document = run.json
    quality = document["quality"]
    assert quality.keys() == {
        *("tokens", "source_perplexity", "perplexity", "loss_percent", "agreement", "kl_nats"),
    }
    assert quality["tokens"] == 600
    assert abs(quality["loss_percent"]) < 1
    assert quality["agreement"] > 0.9
    found = next(finding for finding in document["findings"] if finding["check"] == "quality")
    assert found["level"] == "ok"
    assert f"{quality['perplexity']:.2f} against {quality['source_perplexity']:.2f}" in found["message"]
    assert "Comparing with llama" in run.stderr


def test_without_quality_there_is_no_such_key(coe: Coe, mine: Path) -> None:
    assert "quality" not in verify(coe).json


def test_another_models_weights_are_seen(coe: Coe, mine: Path, llama: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    other = Path(shutil.copytree(llama, tmp_path / "other"))
    weights = load_file(other / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    rng = np.random.default_rng(1)
    weights = {key: rng.normal(0, 0.5, value.shape).astype(value.dtype) for key, value in weights.items()}
    assert name in weights
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    quality = verify(coe, "--source", str(other)).json["quality"]
    assert quality["agreement"] < 0.2
    assert quality["kl_nats"] > 0.01


def test_a_source_that_is_gone_is_named(coe: Coe, mine: Path) -> None:
    write_manifest(mine, {"uri": f"file:{mine.parent / 'gone.gguf'}"})
    run = verify(coe, "--quality")
    assert run.code == 4
    error = (
        json.loads(run.stderr.splitlines()[-1])["error"] if run.stderr.splitlines()[-1].startswith("{") else run.stderr
    )
    assert "gone.gguf" in str(error)
    assert "--source" in str(error)
    found = {finding["check"]: finding for finding in run.json["findings"]}
    assert len(found) > 3 and found["quality"]["level"] == "error", "what else was found is told"
    assert "gone.gguf" in found["quality"]["message"]
    assert "quality" not in run.json


def test_a_model_that_coe_did_not_convert_has_no_source(coe: Coe) -> None:
    from coe_cli.errors import UsageError

    tiny = write_tiny_model(coe.models / "tiny")
    with pytest.raises(UsageError, match="was not converted by coe"):
        check_quality("tiny", tiny, ignore)


@pytest.mark.parametrize("paged", [False, True])
def test_a_model_for_a_card_is_refused_before_its_source_is_fetched(
    coe: Coe, llama: Path, tmp_path: Path, paged: bool
) -> None:
    convert(llama, coe.models / "mine", provider="cuda", precision="int4", on_progress=ignore, paged=paged)
    for options in (("--quality",), ("--source", str(llama))):
        write_manifest(coe.models / "mine", {"uri": f"file:{tmp_path / 'gone.gguf'}"})
        run = verify(coe, *options)
        assert (run.code, "mine was built for CUDA" in run.stderr) == (2, True), run.stderr
        assert "coe models import SOURCE --provider cpu --name mine-cpu" in run.stderr
        assert [finding["check"] for finding in run.json["findings"]][-1] == "quality"


@pytest.mark.parametrize(
    ("loss", "level"), [(0.4, Level.OK), (1.0, Level.OK), (1.01, Level.WARNING), (30, Level.WARNING)]
)
def test_more_than_one_percent_is_a_warning(loss: float, level: Level) -> None:
    quality = Quality(20_000, 40.0, 40.0 * (1 + loss / 100), loss, 0.95, 0.01)
    assert quality_finding("mine", quality).level is level


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_embedded_model_loses_at_most_one_percent_of_its_source() -> None:
    """The whole text, against the GGUF that the record names, fetched again."""
    from coe_cli.runtime.folders import folders

    folder = folders().models / "smollm2-135m"
    quality = check_quality("smollm2-135m", folder, ignore)
    print(quality)
    assert quality.tokens > 20_000
    assert quality.loss_percent <= 1
    assert quality.agreement > 0.9
