"""Execution providers (DirectML, CUDA, CPU): how each is configured."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any


def default_session_options(provider: str) -> dict[str, str | int | bool]:
    """Session options that a worker starts with on ``provider``.

    On the CPU the thread count is the number of cores: ONNX Runtime GenAI's own choice halves the speed (DESIGN §6).
    """
    return {"intra_op_num_threads": usable_cores()} if provider == "cpu" else {}


def usable_cores() -> int:
    """Physical cores that this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    import psutil

    physical = psutil.cpu_count(logical=False) or allowed
    return max(1, min(allowed, physical))


def configure(
    config: Any, provider: str, provider_options: Mapping[str, str], session_options: Mapping[str, str | int | bool]
) -> None:
    """Point an OGA ``Config`` at ``provider``; the model's own provider section is replaced.

    Raises:
        RuntimeError: OGA does not know the provider or an option.
    """
    if session_options:
        config.overlay(json.dumps({"model": {"decoder": {"session_options": dict(session_options)}}}))
    config.clear_providers()
    if provider == "cpu":
        return
    config.append_provider(provider)
    for key, value in provider_options.items():
        config.set_provider_option(provider, key, value)
