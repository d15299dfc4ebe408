"""Which models are in some worker's memory right now."""

from __future__ import annotations

from pathlib import Path

_WORKER = "coe_cli.runtime.worker"


def resident_models(models_dir: Path) -> dict[str, list[int]]:
    """Model name → process ids of the workers of this user that have its weights mapped into memory.

    ONNX Runtime maps external weights on the CPU; a worker that has copied them to a GPU and unmapped them is not seen.
    """
    import psutil

    found: dict[str, list[int]] = {}
    root = models_dir.resolve()
    for process in psutil.process_iter(["cmdline"]):
        if not any(_WORKER in part for part in process.info["cmdline"] or ()):
            continue
        try:
            paths = {Path(item.path) for item in process.memory_maps()}
        except (psutil.Error, OSError):
            continue
        for name in {path.relative_to(root).parts[0] for path in paths if path.is_relative_to(root)}:
            found.setdefault(name, []).append(process.pid)
    return found
