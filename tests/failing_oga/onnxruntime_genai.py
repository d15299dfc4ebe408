"""The real ONNX Runtime GenAI, which fails in a long prompt's answer.

``OGA_FAULT`` is a map: of a prompt of at least ``prompt_tokens`` tokens the token after ``tokens`` others fails by ``kind``
(``oom``: what the library raises; ``kill``: SIGKILL), in so many processes as there are names in ``folder`` to make: ``times``.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

_here = Path(__file__).parent
sys.path[:] = [folder for folder in sys.path if not folder or Path(folder).resolve() != _here.resolve()]
del sys.modules[__name__]
_real = importlib.import_module(__name__)

_fault: dict[str, Any] = json.loads(os.environ["OGA_FAULT"])
_append, _next = _real.Generator.append_tokens, _real.Generator.generate_next_token
_state = {"prompt": 0, "written": 0}


def _append_tokens(self: Any, ids: Any) -> None:
    if _state["written"]:
        _state.update(prompt=0, written=0)
    _state["prompt"] += len(ids)
    _append(self, ids)


def _generate_next_token(self: Any) -> None:
    _state["written"] += 1
    if _state["prompt"] >= _fault["prompt_tokens"]:
        time.sleep(0.03)  # what is written is handed on
        if _state["written"] > _fault["tokens"] and _take_turn():
            if _fault["kind"] == "kill":
                os.kill(os.getpid(), 9)
            raise RuntimeError("Failed to allocate memory for requested buffer of size 134217728")
    _next(self)


def _take_turn() -> bool:
    for number in range(_fault["times"]):
        try:
            (Path(_fault["folder"]) / f"fault-{number}").touch(exist_ok=False)
            return True
        except FileExistsError:
            continue
    return False


_real.Generator.append_tokens, _real.Generator.generate_next_token = _append_tokens, _generate_next_token
