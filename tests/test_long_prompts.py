"""Prompts of megabytes: they cost whoever sends them, and nobody else."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import Coe
from serving import Response, Served, serving

CLIENTS = 24
TEXT = "The keeper wrote down the weather of the day. " * 41_000  # 1.9 MB


@pytest.mark.long
def test_the_college_goes_on_while_clients_send_megabytes(coe: Coe) -> None:
    """Each is told that it is too long, or to come again; others are answered meanwhile, and memory stays bounded."""
    with serving(coe) as served:
        served.chat(max_tokens=2)
        before_mb = served.process.memory_info().rss / 2**20
        health = _Health(served, threading.Event())
        health.thread.start()
        with ThreadPoolExecutor(CLIENTS) as clients:
            refused = list(clients.map(lambda _: served.chat(TEXT), range(CLIENTS)))
        short = served.chat(max_tokens=2)
        health.stop()
        assert short.status == 200, short.body
        assert {_reason(response) for response in refused} <= {"context_length_exceeded", "prompts_full", "bodies_full"}
        assert "context_length_exceeded" in {_reason(response) for response in refused}
        assert all(response.headers.get("retry-after") for response in refused if response.status in (429, 503))
        assert health.answers > CLIENTS, "it was asked one after the other, and went on answering"
        assert served.process.memory_info().rss / 2**20 < before_mb + 600


def _reason(response: Response) -> str:
    return str(response.error["code"])


class _Health:
    """Asks after the college's health without a pause, and counts the answers."""

    def __init__(self, served: Served, over: threading.Event) -> None:
        self._served, self._over = served, over
        self.answers = 0
        self.thread = threading.Thread(target=self._ask)

    def stop(self) -> None:
        self._over.set()
        self.thread.join()

    def _ask(self) -> None:
        while not self._over.is_set():
            assert self._served.request("GET", "/healthz").status == 200
            self.answers += 1
