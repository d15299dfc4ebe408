"""The user's own settings: single values of their YAML files, read in force and written with their comments kept."""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

from coe_cli.core.hardware.profile import PROFILE_KEYS
from coe_cli.core.layers import Layers
from coe_cli.core.names import nearest
from coe_cli.core.problem import Problem
from coe_cli.errors import CoeError, ProfileInvalid, UsageError
from coe_cli.runtime.atomic_write import written_out
from coe_cli.runtime.folders import catalog_paths, folders, own_catalog, own_profiles, profile_paths
from coe_cli.runtime.model_folder.on_disk import models_on_disk
from coe_cli.runtime.settings import load_catalog, load_profiles, read_document, read_profiles

_OF_THE_CATALOG = ("default_model", "default_expert", "models", "experts")
_SHORT = {"profile": "default_profile", "model": "default_model", "expert": "default_expert"}

SHIPPED: Final = object()
"""In place of a value: whatever is shipped."""


class Changed(NamedTuple):
    """What was written where."""

    key: str
    value: str
    path: Path


def get_setting(key: str) -> Any:
    """The value in force of a key.

    Raises:
        UsageError: there is no such setting.
    """
    path = _path_of(key)
    files = catalog_paths() if path[0] in _OF_THE_CATALOG else profile_paths()
    value: Any = Layers([read_document(file) for file in files]).data
    for number, step in enumerate(path):
        if path == ["default_expert"] and step not in value:
            return None
        if not isinstance(value, dict) or step not in value:
            known = list(map(str, value)) if isinstance(value, dict) else []
            if number == 2 and path[0] == "profiles" and step in _defaults(path[1]):
                return _defaults(path[1])[step]
            raise UsageError(f"there is no setting `{'.'.join(path)}`", nearest(step, [*known, *_SHORT]))
        value = value[step]
    return value


def own_settings() -> dict[str, Any]:
    """What the user's files say, by their keys."""
    found: dict[str, Any] = {}
    for file in (own_profiles(), own_catalog()):
        if file.exists():
            found |= _flat("", read_document(file).data or {})
    return found


def set_setting(key: str, value: str) -> Changed:
    """Write one value into the user's file and nothing else.

    Raises:
        UsageError: the value is no YAML.
        ProfileInvalid: the file would not be valid, and is as it was.
    """
    path = _path_of(key)
    try:
        given = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UsageError(f"`{value}` is not a value of YAML", "Put quotes around it.") from None
    file = write_setting(path, SHIPPED if given is None else given)
    return Changed(".".join(path), "the shipped value" if given is None else value, file)


def write_setting(path: list[str], given: Any) -> Path:
    """Write ``given`` at the keys of ``path`` in the user's file, or take out what is there (``SHIPPED``); returns the file.

    Raises:
        ProfileInvalid: the entry or what goes with it would not be valid, and the file is as it was.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap

    file = own_catalog() if path[0] in _OF_THE_CATALOG else own_profiles()
    editor = YAML()
    editor.preserve_quotes, editor.width = True, 4096
    if file.exists():
        read_document(file)  # says what is wrong with it, where something is
    content = editor.load(file.read_text(encoding="utf-8-sig")) if file.exists() else None
    content = CommentedMap() if content is None else content
    section = content
    for step in path[:-1]:
        if not isinstance(section.get(step), dict):
            section[step] = CommentedMap()
        section = section[step]
    if given is SHIPPED:
        section.pop(path[-1], None)
    else:
        section[path[-1]] = given
    text = io.StringIO()
    if content:
        editor.dump(content, text)
    file.parent.mkdir(parents=True, exist_ok=True)
    is_catalog = path[0] in _OF_THE_CATALOG
    broken = _problems(file, is_catalog=is_catalog).keys() - {".".join(path[:2])} if file.exists() else ()
    with written_out(file) as scratch:
        scratch.write_text(text.getvalue() or "{}\n", encoding="utf-8", newline="\n")
        _check(scratch, is_catalog=is_catalog, shown=file, broken=broken)
    return file


def edit_settings(*, experts: bool) -> Path:
    """Open a file of the user's in their editor, and check it when that has ended.

    Raises:
        UsageError: there is no terminal for it.
        ProfileInvalid: the file is not valid now.
        CoeError: the editor cannot be run.
    """
    file = own_catalog() if experts else own_profiles()
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        shipped = catalog_paths()[0] if experts else profile_paths()[0]
        file.write_text(
            f"# Your own settings; they win over {shipped}, which shows what there is.\n{{}}\n", encoding="utf-8"
        )
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or ("notepad" if sys.platform == "win32" else "vi")
    if editor == "vi" and not sys.stdin.isatty():
        raise UsageError("an editor needs a terminal", f"Write {file}, or single values: coe config set KEY VALUE")
    command = [*(shlex.split(editor, posix=sys.platform != "win32")), str(file)]
    try:
        code = subprocess.run(command, check=False).returncode
    except OSError as error:
        raise CoeError(
            f"the editor `{editor}` cannot be run: {error.strerror}", "Name yours: export EDITOR=nano"
        ) from None
    if code:
        raise CoeError(f"`{editor}` ended with {code}", f"Change {file} with another editor: export EDITOR=nano")
    _check(file, is_catalog=experts, shown=file)
    return file


def _path_of(key: str) -> list[str]:
    short = key.strip().replace("-", "_")
    if short in PROFILE_KEYS:  # of the profile that is in force
        return ["profiles", read_profiles().select(os.environ.get("COE_PROFILE")).name, short]
    path = _SHORT.get(short, key.strip()).split(".")
    if not all(path):
        raise UsageError(f"`{key}` is not the name of a setting", "Write it as in routing.enabled.")
    return path


def _check(file: Path, *, is_catalog: bool, shown: Path, broken: Collection[str] = ()) -> None:
    """Raises:
    ProfileInvalid: an entry of ``file`` is not valid, and is none of those that were ``broken`` before.
    """
    for key, problem in _problems(file, is_catalog=is_catalog).items():
        if key in broken:
            continue
        if file == shown:
            raise ProfileInvalid(problem.message, problem.hint)
        what = re.sub(rf"^{re.escape(str(file))}:\d+: ", "", problem.message)  # the line is not in the user's file
        hint = problem.hint.replace("Correct that line.", "Give another value.")
        raise ProfileInvalid(f"{what.replace(str(file), str(shown))}; the file is as it was", hint)


def _problems(file: Path, *, is_catalog: bool) -> dict[str, Problem]:
    """What is wrong in ``file`` over the shipped one, by entry."""
    if is_catalog:
        return load_catalog([catalog_paths()[0], file], file, list(models_on_disk(folders().models))).problems
    return load_profiles([profile_paths()[0], file], file).problems


def _defaults(profile: str) -> dict[str, Any]:
    """Settings of a profile that its entry need not write."""
    entry = read_profiles().profiles[profile]
    return {key: getattr(entry, key if hasattr(entry, key) else f"{key}_s") for key in PROFILE_KEYS}


def _flat(before: str, section: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in section.items():
        key = f"{before}{name}"
        found |= _flat(f"{key}.", value) if isinstance(value, dict) else {key: value}
    return found
