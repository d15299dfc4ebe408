"""A small Hugging Face hub on loopback that can be told to misbehave."""

from __future__ import annotations

import hashlib
import json
import re
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
    """Repositories by name, each a dict of path to content; the other fields are its vices."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    drop_after: dict[str, list[int]] = field(
        default_factory=dict
    )  # path → bytes after which the next replies break off
    stall_after: dict[str, int] = field(default_factory=dict)  # path → bytes after which nothing more comes
    tampered: dict[str, bytes] = field(default_factory=dict)  # path → what is sent instead
    claimed_sizes: dict[str, int] = field(default_factory=dict)  # path → size in the listing
    refuse: tuple[int, str] | None = None  # status and X-Error-Code for every request
    chunk_pause_s: float = 0.0
    silent: bool = False
    on_request: Callable[[str, str], None] | None = None
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
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
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return server


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
            time.sleep(30)
        if hub.refuse is not None:
            status, code = hub.refuse
            self._head(status, {"X-Error-Code": code, "X-Error-Message": code, "Content-Length": "0"})
            return
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/(.+))?", path):
            self._listing(match[1])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(match[1], match[3], with_body=with_body)
        else:
            self._head(404, {"Content-Length": "0"})

    def _listing(self, repository: str) -> None:
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
        body = json.dumps({"id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings}).encode()
        self._head(200, {"Content-Type": "application/json", "Content-Length": str(len(body))})
        self.wfile.write(body)

    def _file(self, repository: str, path: str, *, with_body: bool) -> None:
        listed = self.hub.repositories.get(repository, {}).get(path)
        if listed is None:
            self._head(404, {"X-Error-Code": "EntryNotFound", "Content-Length": "0"})
            return
        content = self.hub.tampered.get(path, listed)
        etag = hashlib.sha256(listed).hexdigest() if len(listed) > _LARGE_BYTES else hashlib.sha1(listed).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        status, begin = 200, 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and with_body:
            status, begin = 206, int(asked[1])
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        self._head(status, headers | {"Content-Length": str(len(content) - begin)})
        if with_body:
            self._send(path, content[begin:])

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
            time.sleep(60)
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
