"""What is said of a model that an older recipe of coe's own converted, and how it is made anew."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import unquote

from coe_cli.core.command_line import command_line
from coe_cli.core.findings import Finding, warning
from coe_cli.core.importing.record import RECORD, is_older
from coe_cli.runtime.regular_file import read_text
from coe_cli.runtime.store.integrity import read_manifest

_MAX_RECORD_BYTES = 2**20


def older_recipe(name: str, folder: Path) -> Finding | None:
    """A warning with the command that writes the model by today's recipe; None where that wrote it, or coe did not convert it."""
    try:
        record = json.loads(read_text(folder / RECORD, _MAX_RECORD_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        record = None
    if not is_older(record):
        return None
    return warning("recipe", f"{name} works, but an older recipe of coe wrote it", _anew(name, folder))


def _anew(name: str, folder: Path) -> str:
    origin = (read_manifest(folder) or {}).get("origin")
    found = origin if isinstance(origin, dict) else {}
    uri = str(found.get("uri") or "")
    if "precision" not in found and uri:
        return command_line(["coe", "models", "pull", name, "--force"])
    said = [item for key in ("provider", "precision") if (value := found.get(key)) for item in (f"--{key}", str(value))]
    said += ["--paged"] if found.get("paged") else []
    path = Path(unquote(uri.removeprefix("file:"))).expanduser()
    if uri.startswith("file:") and not path.exists():
        again = command_line(["coe", "models", "import", "FILE", "--name", name, *said, "--force"])
        return f"{path} is not there any more: fetch its source again, then {again}"
    source = str(path) if uri.startswith("file:") else uri or "FILE"
    return command_line(["coe", "models", "import", source, "--name", name, *said, "--force"])
