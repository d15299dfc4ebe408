"""The file for a bug report: findings, versions and models' configurations; no prompts, answers, tokens or user names."""

from __future__ import annotations

import getpass
import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

from coe_cli.core.models.model_spec import GENAI_CONFIG
from coe_cli.errors import CoeError
from coe_cli.runtime.folders import folders
from coe_cli.runtime.model_folder.on_disk import models_on_disk
from coe_cli.runtime.store.integrity import MANIFEST

_SECRET = re.compile(r"hf_\w+|sk-[\w-]+|ghp_\w+|(?<=://)[^/\s@]+(?=@)")
_QUERY = re.compile(r"(https?://[^\s?#\"'<>]+)[?#][^\s\"'<>]*")
"""A signed address has its key behind the question mark."""
_SHOWN = ("COE_", "HF_", "CUDA_", "ORT_")
_HIDDEN = re.compile(r"TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)


def write_bundle(path: Path, report: dict[str, Any]) -> list[str]:
    """Write ``path`` and return the names of what is in it.

    Raises:
        CoeError: it cannot be written.
    """
    content = {
        "doctor.json": json.dumps(report, indent=2),
        "environment.json": json.dumps(_environment(), indent=2, sort_keys=True),
    }
    own_profiles = folders().config / "hardware_profiles.yaml"
    texts = {"hardware_profiles.yaml": own_profiles}
    for name, folder in models_on_disk(folders().models).items():
        texts |= {f"models/{name}/{file}": folder / file for file in (GENAI_CONFIG, MANIFEST)}
    for inside, file in texts.items():
        try:
            content[inside] = file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
    try:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in content.items():
                archive.writestr(name, redact(text))
    except OSError as error:
        raise CoeError(
            f"{path} cannot be written: {error.strerror or error}", "Name a file in another folder."
        ) from error
    return list(content)


def redact(text: str) -> str:
    """``text`` without tokens, passwords and queries in addresses, the home folder and the user's name."""
    text = _QUERY.sub(r"\1", _SECRET.sub("[removed]", text))
    home = str(Path.home())
    for form in {home, home.replace("\\", "\\\\"), Path.home().as_posix()} - {"/"}:
        text = text.replace(form, "~")
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        return text
    return re.sub(rf"(?<=[/\\]){re.escape(user)}(?=[/\\])", "[user]", text)


def _environment() -> dict[str, str]:
    return {
        name: "[removed]" if _HIDDEN.search(name) else value
        for name, value in os.environ.items()
        if name.startswith(_SHOWN)
    }
