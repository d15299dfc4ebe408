"""The real ONNX Runtime GenAI on the CPU, with DirectML's restrictions and under its name.

A generator takes tokens once and cannot be rewound; both refusals are in DirectML's words. It does split a prompt by
``search.chunk_size``, which DirectML then answers wrongly: a line of the log tells it. With ``OGA_START_FAILS`` a model
cannot be loaded on it, and that text is why. With ``OGA_WRONG`` its logits are those of a broken driver. ``OGA_LOG`` names a file that gets a line for each generator and prompt.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

_here = Path(__file__).parent
sys.path[:] = [folder for folder in sys.path if not folder or Path(folder).resolve() != _here.resolve()]
del sys.modules[__name__]
_real: Any = importlib.import_module(__name__)
sys.path.insert(0, str(_here))  # for those who ask which packages are installed


def _log(line: str) -> None:
    if path := os.environ.get("OGA_LOG"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(line + "\n")


class Config(_real.Config):
    on_directml = False

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        content = json.loads(Path(folder, "genai_config.json").read_text(encoding="utf-8"))
        self.chunk_size = content.get("search", {}).get("chunk_size", 0)

    def overlay(self, text: str) -> None:
        self.chunk_size = json.loads(text).get("search", {}).get("chunk_size", self.chunk_size)
        super().overlay(text)

    def append_provider(self, name: str) -> None:
        if name != "dml":
            super().append_provider(name)
            return
        self.on_directml = True

    def set_provider_option(self, name: str, key: str, value: str) -> None:
        if name != "dml":
            super().set_provider_option(name, key, value)


class Model(_real.Model):
    def __init__(self, config: Config) -> None:
        self.on_directml, self.chunk_size = config.on_directml, config.chunk_size
        if self.on_directml and (text := os.environ.get("OGA_START_FAILS")):
            raise RuntimeError(text)
        super().__init__(config)


class Generator(_real.Generator):
    def __init__(self, model: Model, params: Any) -> None:
        super().__init__(model, params)
        self._once, self._read, self._chunk_size = model.on_directml, False, model.chunk_size
        _log("generator")

    def append_tokens(self, ids: Any) -> None:
        if self._once and self._read:
            raise RuntimeError(
                "Continuous decoding is not supported on the selected device type (DirectML). Please recreate the "
                "generator instance to avoid using continuous decoding."
            )
        self._read = True
        _log(f"prompt {len(ids)}" + (f" in pieces of {self._chunk_size}" if self._once and self._chunk_size else ""))
        super().append_tokens(ids)

    def get_logits(self) -> Any:
        logits = super().get_logits()
        return -logits if self._once and os.environ.get("OGA_WRONG") else logits

    def rewind_to(self, length: int) -> None:
        if self._once:
            raise RuntimeError("Static buffer is not supported for continuous decoding.")
        super().rewind_to(length)


_real.Config, _real.Model, _real.Generator = Config, Model, Generator
_real.is_dml_available = lambda: True
