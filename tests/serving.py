"""Colleges for tests: start one, talk HTTP to it, end it for certain."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil
from conftest import Coe, eventually, is_gone

if TYPE_CHECKING:
    import openai


def free_port() -> int:
    """Below those that a system gives to connections by itself: none of them takes it before who asked for it."""
    for port in random.sample(range(15_000, 32_000), 100):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no port is free")


@dataclass
class Response:
    """One HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """OpenAI's error object, checked for its shape."""
        error: dict[str, Any] = self.json["error"]
        assert list(error) == ["message", "type", "param", "code"]
        return error

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """The JSON chunks of a stream, which must end properly."""
        lines = [line for line in self.body.decode().split("\n\n") if line]
        assert lines[-1] == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


@dataclass
class Served:
    """A running college."""

    coe: Coe
    url: str

    @property
    def state(self) -> dict[str, Any]:
        return json.loads((self.coe.folder / "state" / "college.json").read_text())

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(self.state["pid"])

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 0

    def client(self) -> openai.OpenAI:
        """OpenAI's, which asks once."""
        import openai

        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def request(
        self, method: str, path: str, value: Any = None, *, body: bytes | None = None, **headers: str
    ) -> Response:
        """One request on a connection of its own; underscores in header names stand for hyphens."""
        connection = self.connect()
        try:
            given = {key.replace("_", "-"): text for key, text in headers.items()}
            if value is not None:
                body = json.dumps(value).encode()
            connection.request(method, path, body, {"Content-Type": "application/json", **given})
            response = connection.getresponse()
            return Response(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def connect(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.url)
        return http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=120)

    def chat(self, question: str = "The capital of France is", **fields: Any) -> Response:
        """A greedy chat completion of the embedded model."""
        body = {
            "model": "smollm2-135m",
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": 24,
        }
        return self.request("POST", "/v1/chat/completions", body | fields)

    def status(self) -> dict[str, Any]:
        """What `coe ps --format json` says."""
        return json.loads(self.coe.run("ps", "--format", "json").check().stdout)

    def snapshot(self) -> dict[str, Any]:
        """The same without a process."""
        return self.request("GET", "/coe/snapshot", authorization=f"Bearer {self.state['token']}").json


@contextlib.contextmanager
def serving(coe: Coe, *arguments: str, **environment: Any) -> Iterator[Served]:
    """`coe serve` with ``arguments``; the college and its workers are gone afterwards."""
    result = coe.run("serve", "--keep-alive", "10m", *arguments, **environment).check()
    served = Served(coe, result.stdout.strip())
    process = served.process
    try:
        yield served
    finally:
        end(process)


def end(process: psutil.Process) -> None:
    """End a college, by its id and with its workers."""
    with contextlib.suppress(psutil.Error, OSError):
        workers = process.children()
        os.kill(process.pid, signal.SIGTERM)
        try:
            eventually(lambda: is_gone(process))
        finally:
            for left in [process, *workers]:
                with contextlib.suppress(psutil.Error, OSError):
                    left.kill()
