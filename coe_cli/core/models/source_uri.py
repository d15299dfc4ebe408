"""Addresses of models: ``hf:owner/repo[@revision][/path]``, ``pypi:project[==version]/path``, ``file:path``."""

from __future__ import annotations

import re
from urllib.parse import unquote

from msgspec import Struct

from coe_cli.errors import UsageError

_HF = re.compile(
    r"hf:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>refs/(?:pr|heads|tags|convert)/[\w.-]+|[\w.-]+))?(/(?P<path>.+))?"
)
_PYPI = re.compile(r"pypi:(?P<project>[A-Za-z0-9][\w.-]*)(==(?P<version>[\w.!+]+))?/(?P<path>.+)")
_HUB_PAGE = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<repo>[\w.-]+/[\w.-]+)"
    r"(?:/(?:tree|blob|resolve)/(?P<revision>[\w.-]+)(?:/(?P<path>[^?#]+))?)?/?(?:[?#].*)?"
)
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_FORMS = "Write hf:owner/repo[@revision][/folder], pypi:project[==version]/path or file:path."


class HubSource(Struct, frozen=True):
    """A repository of the Hugging Face hub, or one file or folder of it; no revision means the newest."""

    repo: str
    revision: str | None
    path: str | None


class WheelSource(Struct, frozen=True):
    """A file or folder inside a wheel on the user's package index."""

    project: str
    version: str | None
    path: str

    @property
    def requirement(self) -> str:
        return f"{self.project}=={self.version}" if self.version else self.project


class FileSource(Struct, frozen=True):
    """A folder, a .zip or .tar archive of one, or a single file on this machine."""

    path: str


SourceUri = HubSource | WheelSource | FileSource


def is_uri(text: str) -> bool:
    """Whether ``text`` is an address and not a name."""
    return text.startswith(("hf:", "pypi:", "file:"))


def as_hub_uri(text: str) -> str:
    """``owner/repo`` and the address of a page of the hub as ``hf:…``; anything else as it is."""
    if match := _HUB_PAGE.fullmatch(text):
        revision = f"@{match['revision']}" if match["revision"] not in (None, "main") else ""
        return f"hf:{match['repo']}{revision}" + (f"/{unquote(match['path'])}" if match["path"] else "")
    return f"hf:{text}" if _REPOSITORY.fullmatch(text) and not text.startswith(".") else text


def parse_uri(uri: str) -> SourceUri:
    """Read an address.

    Raises:
        UsageError: it has none of the three forms, or a part of it climbs out of its repository.
    """
    if match := _HF.fullmatch(uri):
        _check_repository(uri, match["repo"])
        path = match["path"]
        return HubSource(match["repo"], match["revision"], check_member(path.rstrip("/")) if path else None)
    if match := _PYPI.fullmatch(uri):
        return WheelSource(match["project"], match["version"], check_member(match["path"].rstrip("/")))
    if uri.startswith("file:") and len(uri) > len("file:"):
        path = uri.removeprefix("file:")
        return FileSource(path.removeprefix("//") if path.startswith("///") else path)
    raise UsageError(f"`{uri}` is not the address of a model", _FORMS)


def shortened(uri: str) -> str:
    """``uri`` for people: of a commit the first eight digits, so that it stays whole on a line of a terminal."""
    return re.sub(r"(?<=@[0-9a-f]{8})[0-9a-f]{32}\b", "", uri)


def check_member(path: str) -> str:
    """``path``, if it stays below the folder that it is unpacked into, on every system.

    Raises:
        UsageError: it is absolute, has a `..`, a backslash, a drive or a control character.
    """
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or re.search(r"[\\:\x00-\x1f]", path):
        raise UsageError(f"`{path}` is not a path inside a model", "Use a plain path such as folder/model.onnx.")
    return path


def default_name(uri: str) -> str:
    """The name that a model from ``uri`` gets: the last part of its address, without a file's ending.

    Raises:
        UsageError: as ``parse_uri``.
    """
    source = parse_uri(uri)
    match source:
        case HubSource(repo=repo, path=path):
            last = (path or repo).rsplit("/", 1)[-1]
        case WheelSource(path=path) | FileSource(path=path):
            last = re.split(r"[/\\]", path.rstrip("/\\"))[-1]
    return re.sub(r"(\.(onnx|gguf|zip|tar|tgz|gz|xz))+$", "", last, flags=re.IGNORECASE)


def _check_repository(uri: str, repo: str) -> None:
    if any(set(part) == {"."} for part in repo.split("/")):
        raise UsageError(f"`{uri}` is not the address of a model", _FORMS)
