"""What Ollama's lists say of a model: what its folder and the pool tell. What is not known is left out, or empty where clients want the key."""

from __future__ import annotations

import contextlib
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from coe_cli.core.models.model_spec import GENAI_CONFIG, ModelSpec
from coe_cli.core.providers import on_host
from coe_cli.core.scheduling.scheduler_state import ModelStatus
from coe_cli.core.units import BYTES_PER_MB
from coe_cli.errors import CoeError
from coe_cli.runtime.college.resolver import RequestResolver
from coe_cli.runtime.model_folder.on_disk import spec_from_folder
from coe_cli.runtime.planning.calibration_store import model_digest
from coe_cli.runtime.progress import size_of


def listed(names: dict[str, Path | None]) -> list[dict[str, Any]]:
    """``/api/tags``: each name that stands for a model on disk, with all that Ollama's clients read: some require each key."""
    found = {folder: _found(folder) for folder in {*names.values()} if folder is not None}
    return [
        {"name": name, "model": name, **told, "details": _under(name, told["details"], folder.name)}
        for name, folder in names.items()
        if folder is not None and (told := found[folder])
    ]


def _found(folder: Path) -> dict[str, Any]:
    """What the folder tells of a model; nothing where it was removed meanwhile, or cannot be used."""
    with contextlib.suppress(OSError, CoeError):
        spec = spec_from_folder(folder.name, folder)
        told = {"size": size_of(folder), "digest": model_digest(folder, spec.graph), "details": _details(spec)}
        return _modified(folder) | told
    return {}


def loaded(model: ModelStatus, resolver: RequestResolver) -> dict[str, Any]:
    """An entry of ``/api/ps``; ``size`` and ``size_vram`` are bytes in memory and on a card, as Ollama has them."""
    held, on_card = model.held_mb * BYTES_PER_MB, 0
    with contextlib.suppress(CoeError):  # removed meanwhile
        on_card = 0 if on_host(resolver.open(model.name).provider) else held
    entry = {"name": model.name, "model": model.name, **_found(resolver.models_dir / model.name)}
    entry |= {"size": held, "size_vram": on_card}
    if model.expires_in_s is not None:
        entry["expires_at"] = _time(time.time() + model.expires_in_s)
    return entry | {"state": model.state}


def shown(name: str, spec: ModelSpec, folder: Path) -> dict[str, Any]:
    """The answer of ``/api/show`` to ``name``, which may be an expert's."""
    kind = spec.model_type
    return {
        **_modified(folder),
        "details": _under(name, _details(spec), spec.name),
        "model_info": {"general.architecture": kind, f"{kind}.context_length": spec.context_length},
        "capabilities": ["completion", "tools"],
    }


def written_at(folder: Path) -> int | None:
    """When the model in ``folder`` was written, in seconds since 1970; None where it was removed meanwhile."""
    with contextlib.suppress(OSError):
        return int((folder / GENAI_CONFIG).stat().st_mtime)
    return None


def _modified(folder: Path) -> dict[str, str]:
    at = written_at(folder)
    return {} if at is None else {"modified_at": _time(at)}


def _time(seconds: float) -> str:
    """As Ollama writes a time."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _under(name: str, details: dict[str, Any], model: str) -> dict[str, Any]:
    """``details`` of ``model`` as those of ``name``: an expert, or ``auto``, is made of a model."""
    return details | {"parent_model": "" if name == model else model}


def _details(spec: ModelSpec) -> dict[str, Any]:
    family = spec.model_type
    return {
        "parent_model": "",
        "format": "onnx",
        "family": family,
        "families": [family] if family else [],
        "parameter_size": "",
        "quantization_level": "",
    }
