"""Stands in for ONNX Runtime GenAI in a worker: a model that takes known times, by sleeping, and fails when told to.

``sleeps.json`` in the model's folder, to which the worker's own folder has the link ``files``: ``load_s``, ``prefill_s_per_token``, ``step_s``, ``memory_mb`` (allocated by a load),
``fail_load`` and ``fail_generator`` (a RuntimeError's text), ``crash_at_step``, ``hold_at_step`` (waits for the file ``until``).
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

__version__ = "sleeping"


class Config:
    def __init__(self, folder: str) -> None:
        self.folder = folder

    def overlay(self, text: str) -> None:
        json.loads(text)

    def clear_providers(self) -> None:
        pass


class Model:
    def __init__(self, config: Config) -> None:
        self.sleeps: dict[str, Any] = json.loads((Path(config.folder) / "files" / "sleeps.json").read_text())
        time.sleep(self.sleeps.get("load_s", 0))
        if "fail_load" in self.sleeps:
            raise RuntimeError(self.sleeps["fail_load"])
        self.weights = b"\1" * (self.sleeps.get("memory_mb", 0) * 2**20)


class Tokenizer:
    def __init__(self, model: Model) -> None:
        pass

    def create_stream(self) -> Tokenizer:
        return self

    def decode(self, token: int) -> str:
        return f"{token} "


class GeneratorParams:
    def __init__(self, model: Model) -> None:
        self.options: dict[str, Any] = {}

    def set_search_options(self, **options: Any) -> None:
        self.options = options


class Generator:
    def __init__(self, model: Model, params: GeneratorParams) -> None:
        self._sleeps = model.sleeps
        if "fail_generator" in self._sleeps:
            raise RuntimeError(self._sleeps["fail_generator"])
        self._length = self._steps = 0

    def append_tokens(self, ids: Any) -> None:
        time.sleep(self._sleeps.get("prefill_s_per_token", 0) * len(ids))
        self._length += len(ids)

    def rewind_to(self, length: int) -> None:
        self._length = length

    def generate_next_token(self) -> None:
        """The first token after a prompt costs nothing: its logits come from the prefill."""
        self._steps += 1
        if self._steps == self._sleeps.get("crash_at_step"):
            os._exit(41)
        while self._steps == self._sleeps.get("hold_at_step") and not Path(self._sleeps["until"]).exists():
            time.sleep(0.01)
        time.sleep(self._sleeps.get("step_s", 0))
        self._length += 1

    def get_next_tokens(self) -> list[int]:
        return [7]

    def is_done(self) -> bool:
        return False
