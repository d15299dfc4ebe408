"""Measurements: kept, merged, used by the next plan; what cannot be used is ignored with one warning."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from coe_cli.core.memory.calibration import CalibrationKey, CalibrationRecord, apply, find, merge
from coe_cli.core.memory.footprint import ExactAccounting, ModelMemory
from coe_cli.core.models.catalog import ModelShape
from coe_cli.core.models.model_spec import BYTES_PER_MB, ModelSpec
from coe_cli.runtime.planning.calibration_store import CalibrationStore, model_digest

MODEL = ModelMemory(
    ModelSpec("m", "disk", "cuda", 8192, ModelShape(4, 256, 4, 4, 64, 1000), 500 * BYTES_PER_MB), "cuda"
)


def record(
    kind: str = "load", predicted_mb: int = 100, measured_mb: int = 120, at_s: float = 1.0, **more: object
) -> CalibrationRecord:
    values = {
        "model_digest": "d",
        "provider": "cuda",
        "runtime_version": "0.18.0",
        "adapter": "card",
        "predicted_bytes": predicted_mb * BYTES_PER_MB,
        "measured_bytes": measured_mb * BYTES_PER_MB,
        "at_s": at_s,
        "kind": kind,
        **more,
    }
    return msgspec.convert(values, CalibrationRecord)


def test_measurements_survive_and_the_newest_count(tmp_path: Path) -> None:
    store = CalibrationStore(tmp_path / "state")
    for at_s, measured_mb in enumerate([900, 110, 120, 130, 120, 120], start=1):
        store.record(record(measured_mb=measured_mb, predicted_mb=300, at_s=at_s))
    measurements = store.read()
    assert measurements.warning is None
    (found,) = measurements.calibrations.values()
    assert found.load_bytes == 120 * BYTES_PER_MB
    assert found.error == pytest.approx(300 / 120 - 1)
    assert (found.newest_at_s, found.records) == (6.0, 6)


def test_predictions_of_long_prompts_in_one_piece_count_no_more() -> None:
    """Records of version 1 were predicted so; those of shorter prompts, and of now, are used."""
    found = merge([record("generation", 100, 150, version=1, prompt_tokens=4096, at_s=1.0)])
    assert not found
    usable = [{"version": 1, "prompt_tokens": 512}, {"version": 2, "prompt_tokens": 4096}]
    for number, more in enumerate(usable, start=2):
        (merged,) = merge([record("generation", 100, 150, at_s=float(number), **more)]).values()
        assert merged.slot_ratio == pytest.approx(1.5)


def test_the_next_plan_uses_what_was_measured() -> None:
    found = find(merge([record(measured_mb=140), record("generation", 100, 150)]), "d", "cuda")
    measured, exact = apply(MODEL, found), ExactAccounting()
    assert exact.weights_bytes(measured) == 140 * BYTES_PER_MB
    assert exact.slot(measured, 4096).total_bytes == pytest.approx(1.5 * exact.slot(MODEL, 4096).total_bytes, abs=2)
    assert apply(MODEL, None) is MODEL


def test_a_measurement_below_the_cache_never_makes_memory_negative() -> None:
    measured = structs.replace(MODEL, measured_slot_ratio=0.05)
    slot = ExactAccounting().slot(measured, 4096)
    assert slot.activation_bytes == 0
    assert slot.kv_bytes == ExactAccounting().slot(MODEL, 4096).kv_bytes


def test_keys_are_kept_apart() -> None:
    merged = merge(
        [record(), record(runtime_version="0.13.1", at_s=5.0), record(adapter="other"), record(provider="cpu")]
    )
    assert len(merged) == 4
    newest = find(merged, "d", "cuda")
    assert newest is not None and newest.key == CalibrationKey("d", "cuda", "0.13.1", "card")
    assert find(merged, "d", "cuda", runtime_version="9") is None
    assert find(merged, "e", "cuda") is None


def test_records_out_of_all_proportion_are_left_out() -> None:
    assert merge([record(measured_mb=0), record(measured_mb=5000, predicted_mb=100), record(predicted_mb=0)]) == {}


@given(st.lists(st.binary(max_size=60).filter(lambda line: b"\n" not in line and b"\r" not in line), max_size=5))
def test_corrupt_and_foreign_lines_cost_one_warning(lines: list[bytes]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        store = CalibrationStore(Path(folder))
        store.record(record())
        foreign = [b'{"version": 2}', b"[]", b'{"model_digest": 1', b"\xff\xfe"]
        with store.path.open("ab") as file:
            file.write(b"\n".join([*foreign, *lines]) + b"\n")
        store.record(record(at_s=9.0))
        measurements = store.read()
        assert measurements.warning is not None and str(store.path) in measurements.warning
        assert [item.records for item in measurements.calibrations.values()] == [2]


def test_no_file_is_no_warning_and_a_folder_in_its_place_is_one(tmp_path: Path) -> None:
    store = CalibrationStore(tmp_path)
    assert store.read().warning is None
    store.path.mkdir()
    assert "cannot be read" in (store.read().warning or "")


def test_a_large_file_begins_anew_from_its_newest_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CalibrationStore(tmp_path)
    for at_s in range(10):
        store.record(record(at_s=at_s))
    monkeypatch.setattr("coe_cli.runtime.planning.calibration_store.MOST_BYTES", 100)
    store.record(record(at_s=99.0))
    (found,) = store.read().calibrations.values()
    assert (found.records, found.newest_at_s) == (6, 99.0)


def test_the_digest_tells_builds_apart(tmp_path: Path) -> None:
    digests = set()
    for config, graph, weights in (
        (b"{}", b"graph", b"12"),
        (b"{ }", b"graph", b"12"),
        (b"{}", b"other", b"12"),
        (b"{}", b"graph", b"123"),
    ):
        (tmp_path / "genai_config.json").write_bytes(config)
        (tmp_path / "model.onnx").write_bytes(graph)
        (tmp_path / "model.onnx.data").write_bytes(weights)
        digests.add(model_digest(tmp_path))
        assert model_digest(tmp_path) in digests
    assert len(digests) == 4
