"""Which models are in some worker's memory right now."""

from __future__ import annotations

from pathlib import Path

from coe_cli.errors import CoeError

_WORKER = "coe_cli.runtime.worker.worker"


def models_in_use(models_dir: Path) -> dict[str, list[int]]:
    """Model name → process ids of the workers of this user that have its weights mapped into memory.

    A running college tells its own. Workers of other coe processes are found by the weights that they have mapped: a
    worker that has copied them to a GPU and unmapped them is not seen.
    """
    import psutil

    found = _of_the_college()
    root = models_dir.resolve()
    for process in psutil.process_iter():
        try:  # Windows' refusals about a process that ends meanwhile are not all known to psutil
            if not any(_WORKER in part for part in process.cmdline()):
                continue
            paths = {Path(item.path) for item in process.memory_maps()}
        except (psutil.Error, OSError):
            continue
        for name in {path.relative_to(root).parts[0] for path in paths if path.is_relative_to(root)}:
            if process.pid not in found.setdefault(name, []):
                found[name].append(process.pid)
    return found


def _of_the_college() -> dict[str, list[int]]:
    from coe_cli.runtime.server.college_client import find

    try:
        client = find()
        lines = client.snapshot().models if client is not None else []
    except CoeError:
        return {}
    return {line.name: [line.pid] for line in lines if line.pid}
