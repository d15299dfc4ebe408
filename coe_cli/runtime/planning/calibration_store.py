"""Measurements of real loads and generations, one JSON line each, in the state folder."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

from coe_cli.core.memory.calibration import Calibration, CalibrationKey, CalibrationRecord, merge
from coe_cli.core.models.model_spec import GENAI_CONFIG
from coe_cli.runtime.atomic_write import make_private, write_private

CALIBRATION_FILE = "calibration.jsonl"
MOST_BYTES = 4 * 2**20
_GRAPH_BYTES_READ = 8 * 2**20


class Measurements(Struct, frozen=True):
    """What the store holds, merged. ``warning`` says that some of it could not be used, None when all could."""

    calibrations: dict[CalibrationKey, Calibration]
    warning: str | None = None


class CalibrationStore:
    """The file ``calibration.jsonl`` in ``state``; it is appended to, and begun anew from its newest half when large."""

    def __init__(self, state: Path) -> None:
        self.path = state / CALIBRATION_FILE

    def record(self, record: CalibrationRecord) -> None:
        """Append one measurement.

        Raises:
            OSError: the folder cannot be written.
        """
        make_private(self.path)
        if self.path.stat().st_size > MOST_BYTES:
            self._keep_newest_half()
        with self.path.open("ab") as file:
            file.write(msgspec.json.encode(record) + b"\n")

    def read(self) -> Measurements:
        """Everything that can be used; lines that are torn, foreign or of another version are counted and skipped."""
        try:
            lines = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            return Measurements({})
        except OSError as error:
            return Measurements({}, f"{self.path}: cannot be read: {error.strerror}")
        decoder = msgspec.json.Decoder(CalibrationRecord)
        records, unusable = [], 0
        for line in lines:
            if not line.strip():
                continue
            try:
                records.append(decoder.decode(line))
            except (msgspec.DecodeError, RecursionError):
                unusable += 1
        warning = f"{self.path}: {unusable} of {len(lines)} measurements cannot be used, ignored" if unusable else None
        return Measurements(merge(records), warning)

    def _keep_newest_half(self) -> None:
        lines = self.path.read_bytes().splitlines(keepends=True)
        write_private(self.path, b"".join(lines[len(lines) // 2 :]))


def model_digest(folder: Path, graph: str = "model.onnx") -> str:
    """A digest that tells models and builds apart without reading weights: configuration, graph, sizes of all files."""
    import hashlib

    digest = hashlib.sha256()
    for path in sorted(file for file in folder.iterdir() if file.name.startswith(graph)):
        digest.update(f"{path.name}:{path.stat().st_size}\n".encode())
    for name in (GENAI_CONFIG, graph):
        try:
            with (folder / name).open("rb") as file:
                digest.update(file.read(_GRAPH_BYTES_READ))
        except OSError:
            continue
    return digest.hexdigest()
