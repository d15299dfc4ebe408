"""A small Hugging Face hub and package index on loopback that can be told to misbehave."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40
_LARGE_BYTES = 8192


@dataclass
class Hub:
    """Repositories by name, each a dict of path to content, and wheels by file name; the other fields are its vices."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    wheels: dict[str, bytes] = field(default_factory=dict)
    wheel_password: str | None = None  # what the index and its wheels ask for
    has_ranges: bool = True
    drop_after: dict[str, list[int]] = field(
        default_factory=dict
    )  # path → bytes after which the next replies break off
    stall_after: dict[str, int] = field(default_factory=dict)  # path → bytes after which nothing more comes
    tampered: dict[str, bytes] = field(default_factory=dict)  # path → what is sent instead
    claimed_sizes: dict[str, int] = field(default_factory=dict)  # path → size in the listing
    architectures: dict[str, str] = field(default_factory=dict)  # repository → what the hub says of its GGUF files
    licences: dict[str, str] = field(default_factory=dict)  # repository → the licence that its card names
    refuse: tuple[int, str] | None = None  # status and X-Error-Code for every request
    chunk_pause_s: float = 0.0
    silent: bool = False
    on_request: Callable[[str, str], None] | None = None
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)  # the test that used it has ended
    url: str = ""

    def add_folder(self, repository: str, folder: Path, below: str = "") -> None:
        """Publish the files of ``folder``."""
        files = self.repositories.setdefault(repository, {})
        for path in folder.rglob("*"):
            if path.is_file():
                files[below + path.relative_to(folder).as_posix()] = path.read_bytes()

    def ranges(self, path: str) -> list[str]:
        """The Range headers with which ``path`` was asked for."""
        return [h.get("range", "") for method, p, h in self.requests if method == "GET" and p.endswith("/" + path)]

    def start(self) -> ThreadingHTTPServer:
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return server


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no error, and its traceback would stand in what a test reads of stderr."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def _answer(self, *, with_body: bool) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        hub.requests.append((self.command, path, {k.lower(): v for k, v in self.headers.items()}))
        if hub.on_request is not None:
            hub.on_request(self.command, path)
        if hub.silent:
            self.hub.over.wait()
        if hub.refuse is not None:
            status, code = hub.refuse
            self._head(status, {"X-Error-Code": code, "X-Error-Message": code, "Content-Length": "0"})
            return
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/(revision|tree)/(.+))?", path):
            self._listing(match[1], as_tree=match[3] == "tree")
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(match[1], match[3], with_body=with_body)
        elif match := re.fullmatch(r"/simple/([^/]+)/", path):
            self._index(match[1])
        elif match := re.fullmatch(r"/wheels/(.+)", path):
            self._wheel(match[1], with_body=with_body)
        else:
            self._head(404, {"Content-Length": "0"})

    def _index(self, project: str) -> None:
        """A page of the simple repository API (PEP 503), with digests."""
        names = [name for name in self.hub.wheels if name.split("-")[0].replace("_", "-") == project]
        if not names:
            self._head(404, {"Content-Length": "0"})
            return
        digests = {name: hashlib.sha256(self.hub.wheels[name]).hexdigest() for name in names}
        links = "".join(f'<a href="/wheels/{name}#sha256={digests[name]}">{name}</a>' for name in names)
        body = f"<!DOCTYPE html><html><body>{links}</body></html>".encode()
        self._head(200, {"Content-Type": "text/html", "Content-Length": str(len(body))})
        self.wfile.write(body)

    def _wheel(self, name: str, *, with_body: bool) -> None:
        if name not in self.hub.wheels:
            self._head(404, {"Content-Length": "0"})
            return
        wanted = self.hub.wheel_password
        if wanted is not None and not base64.b64decode(self.headers.get("Authorization", "")[6:]).endswith(
            f":{wanted}".encode()
        ):
            self._head(401, {"WWW-Authenticate": 'Basic realm="wheels"', "Content-Length": "0"})
            return
        self._content(name, self.hub.tampered.get(name, self.hub.wheels[name]), {}, with_body=with_body)

    def _listing(self, repository: str, *, as_tree: bool) -> None:
        files = self.hub.repositories.get(repository)
        if files is None:
            self._head(404, {"X-Error-Code": "RepoNotFound", "Content-Length": "0"})
            return
        siblings = []
        for path, content in files.items():
            entry: dict[str, Any] = {"rfilename": path, "size": self.hub.claimed_sizes.get(path, len(content))}
            if len(content) > _LARGE_BYTES:
                entry["lfs"] = {
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "size": entry["size"],
                    "pointerSize": 130,
                }
                entry["blobId"] = "0" * 40
            else:
                entry["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            siblings.append(entry)
        facts: dict[str, Any] = {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings}
        if repository in self.hub.architectures:
            facts["gguf"] = {"architecture": self.hub.architectures[repository]}
        if repository in self.hub.licences:
            facts["tags"] = ["gguf", f"license:{self.hub.licences[repository]}"]
        tree = [{"type": "file", "path": e["rfilename"], "size": e["size"], "oid": e["blobId"]} for e in siblings]
        body = json.dumps(tree if as_tree else facts).encode()
        self._head(200, {"Content-Type": "application/json", "Content-Length": str(len(body))})
        self.wfile.write(body)

    def _file(self, repository: str, path: str, *, with_body: bool) -> None:
        listed = self.hub.repositories.get(repository, {}).get(path)
        if listed is None:
            self._head(404, {"X-Error-Code": "EntryNotFound", "Content-Length": "0"})
            return
        content = self.hub.tampered.get(path, listed)
        etag = hashlib.sha256(listed).hexdigest() if len(listed) > _LARGE_BYTES else hashlib.sha1(listed).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}
        self._content(path, content, headers, with_body=with_body)

    def _content(self, path: str, content: bytes, headers: dict[str, str], *, with_body: bool) -> None:
        """All of a file, or the range of it that is asked for."""
        status, begin, end = 200, 0, len(content)
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if self.hub.has_ranges:
            headers = headers | {"Accept-Ranges": "bytes"}
        if asked and with_body and self.hub.has_ranges:
            status = 206
            begin = int(asked[1]) if asked[1] else max(0, len(content) - int(asked[2]))
            end = min(len(content), int(asked[2]) + 1) if asked[1] and asked[2] else len(content)
            if begin >= len(content):
                self._head(416, {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"})
                return
            headers |= {"Content-Range": f"bytes {begin}-{end - 1}/{len(content)}"}
        self._head(status, headers | {"Content-Length": str(end - begin)})
        if with_body:
            self._send(path, content[begin:end])

    def _send(self, path: str, body: bytes) -> None:
        drops = self.hub.drop_after.get(path)
        if drops:
            self.wfile.write(body[: drops.pop(0)])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
            return
        if path in self.hub.stall_after:
            self.wfile.write(body[: self.hub.stall_after[path]])
            self.wfile.flush()
            self.hub.over.wait()
        for begin in range(0, len(body), 4096):
            try:
                self.wfile.write(body[begin : begin + 4096])
                self.wfile.flush()
            except OSError:
                self.close_connection = True
                return
            if self.hub.chunk_pause_s:
                time.sleep(self.hub.chunk_pause_s)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
