"""Runs a written graph in ONNX Runtime alone, keeping its cache from step to step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


class Running:
    """One conversation with one graph on the CPU provider."""

    def __init__(self, path: Path, threads: int = 1) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._cache: dict[str, Any] = {}
        for needed in self.session.get_inputs():
            if needed.name.startswith("past_key_values"):
                element = np.float16 if "float16" in needed.type else np.float32
                self._cache[needed.name] = np.zeros((1, needed.shape[1], 0, needed.shape[3]), element)
        self._outputs = [output.name for output in self.session.get_outputs()]
        self._has_positions = any(needed.name == "position_ids" for needed in self.session.get_inputs())
        self._length = 0

    def logits(self, tokens: list[int]) -> np.ndarray:
        """Append ``tokens``; the logits behind the last of them, shape [vocabulary], in fp32."""
        count = len(tokens)
        inputs = {
            "input_ids": np.array([tokens], np.int64),
            "attention_mask": np.ones((1, self._length + count), np.int64),
            **self._cache,
        }
        if self._has_positions:
            inputs["position_ids"] = np.arange(self._length, self._length + count, dtype=np.int64)[None]
        results = dict(zip(self._outputs, self.session.run(None, inputs), strict=True))
        self._length += count
        self._cache = {
            name.replace("present.", "past_key_values."): value for name, value in results.items() if name != "logits"
        }
        return results["logits"][0, -1].astype(np.float32)
