"""Two real colleges behind nginx, with the very file that the documentation ships; only its ports are changed."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import ENDLESS, MODEL, REPOSITORY, Coe, eventually, is_gone
from serving import Response, Served, end, free_port, serving

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
CONFIGURATION = REPOSITORY / "docs" / "balancer" / "nginx.conf"

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed (apt-get install nginx)")


@dataclass
class Farm:
    """Two colleges, each with a state folder of its own, and what stands before them."""

    colleges: list[Served]
    port: int

    def request(self, method: str, path: str, value: Any = None, **headers: str) -> Response:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        with contextlib.closing(connection):
            given = {name.replace("_", "-"): text for name, text in headers.items()}
            body = None if value is None else json.dumps(value).encode()
            connection.request(method, path, body, {"Content-Type": "application/json", **given})
            response = connection.getresponse()
            return Response(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def chat(self, conversation: str = "", question: str = "Name a colour.", **fields: Any) -> Response:
        headers = {"X_Conversation": conversation} if conversation else {}
        turns = [{"role": "user", "content": question}]
        body = {"model": MODEL, "messages": turns, "temperature": 0, "max_tokens": 4} | fields
        return self.request("POST", "/v1/chat/completions", body, **headers)

    def machine(self, response: Response) -> int:
        """Which college has answered in the end."""
        port = int(response.headers["x-coe-machine"].split(", ")[-1].rpartition(":")[2])
        return [college.port for college in self.colleges].index(port)

    def conversation_on(self, machine: int) -> str:
        """A conversation that nginx sends there."""
        names = (f"conversation {number}" for number in range(100))
        return next(
            name for name in names if self.machine(self.request("GET", "/healthz", X_Conversation=name)) == machine
        )


@contextlib.contextmanager
def nginx(folder: Path, ports: dict[str, int]) -> Iterator[None]:
    text = CONFIGURATION.read_text()
    for address, port in ports.items():
        assert address in text
        text = text.replace(address, f"127.0.0.1:{port}")
    (folder / "coe.conf").write_text(text)
    main = f"""
        daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;
        events {{ worker_connections 64; }}
        http {{ access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
                fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
                include {folder}/coe.conf; }}
    """
    (folder / "nginx.conf").write_text(main)
    assert NGINX is not None
    command = [NGINX, "-e", str(folder / "error.log"), "-p", str(folder), "-c", str(folder / "nginx.conf")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        with contextlib.suppress(AssertionError):
            eventually(lambda: process.poll() is not None or _listens(ports["127.0.0.1:8080"]))
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        yield
    finally:
        process.terminate()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@pytest.fixture
def farm(request: pytest.FixtureRequest, tmp_path: Path, models_dir: Path) -> Iterator[Farm]:
    """The parameter is how many requests may wait at each college."""
    max_queue = str(getattr(request, "param", 8))
    with contextlib.ExitStack() as stack:
        colleges = []
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
            coe = Coe(tmp_path / name, models_dir)
            colleges.append(stack.enter_context(serving(coe, "--allowed-host", "coe", "--max-queue", max_queue)))
            stack.callback(coe.end_all)
        ports = {"127.0.0.1:8080": free_port(), "127.0.0.1:8081": colleges[0].port, "127.0.0.1:8082": colleges[1].port}
        folder = tmp_path / "nginx"
        folder.mkdir()
        stack.enter_context(nginx(folder, ports))
        yield Farm(colleges, ports["127.0.0.1:8080"])


@contextlib.contextmanager
def busy(college: Served, answers: int) -> Iterator[None]:
    """So many long answers at one college, broken off in the end."""
    connections = []
    messages = [{"role": "user", "content": ENDLESS}]
    body = json.dumps({"model": MODEL, "messages": messages, "stream": True, "temperature": 0})
    for _ in range(answers):
        connection = college.connect()
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        connections.append(connection)
    try:
        eventually(lambda: sum(m["running"] + m["waiting"] for m in college.snapshot()["models"]) == answers)
        yield
    finally:
        for connection in connections:
            connection.close()


@pytest.mark.long
def test_conversations_stay_where_their_cache_is_and_both_machines_work(farm: Farm) -> None:
    machines = {name: farm.machine(farm.chat(name)) for name in (f"user {number}" for number in range(8))}
    assert set(machines.values()) == {0, 1}
    for name, machine in machines.items():
        again = farm.chat(name, question="Name a colour. Another one.")
        assert (again.status, farm.machine(again)) == (200, machine)
        assert again.json["usage"]["prompt_tokens_details"]["cached_tokens"] > 20
    by_key = [farm.machine(farm.request("GET", "/healthz", Authorization=f"Bearer {key}")) for key in range(12)]
    assert set(by_key) == {0, 1}, "without the header the API key decides"
    by_cookie = [farm.machine(farm.request("GET", "/healthz", Cookie=f"conversation={key}")) for key in range(12)]
    assert set(by_cookie) == {0, 1}
    assert farm.request("GET", "/metrics").status == farm.request("POST", "/coe/stop").status == 404


@pytest.mark.long
@pytest.mark.parametrize("farm", [1], indirect=True)
def test_a_full_queue_sends_the_question_on_and_two_full_ones_say_when_to_come_back(farm: Farm) -> None:
    there = farm.conversation_on(0)
    farm.chat(there), farm.chat(farm.conversation_on(1))  # both have the model loaded
    with busy(farm.colleges[0], 3):  # two slots, one may wait
        assert farm.colleges[0].chat().status == 429
        passed_on = farm.chat(there)
        assert (passed_on.status, farm.machine(passed_on)) == (200, 1)
        assert passed_on.headers["x-coe-machine"].count(",") == 1, "both were asked"
        with busy(farm.colleges[1], 3):
            refused = farm.chat(there)
            assert (refused.status, refused.json["error"]["code"]) == (429, "queue_full")
            assert int(refused.headers["retry-after"]) >= 1


@pytest.mark.long
def test_draining_fails_no_request(farm: Farm) -> None:
    """Two clients ask without a pause while one college is drained; a stream that it has begun is finished."""
    there = farm.conversation_on(0)
    farm.chat(there)
    statuses: Counter[int] = Counter()
    stop = threading.Event()

    def ask(number: int) -> None:
        while not stop.is_set():
            statuses[farm.chat(f"client {number}", max_tokens=2).status] += 1

    clients = [threading.Thread(target=ask, args=(number,)) for number in range(2)]
    stream = http.client.HTTPConnection("127.0.0.1", farm.port, timeout=120)
    question = {"model": MODEL, "messages": [{"role": "user", "content": "Tell a story."}], "max_tokens": 120}
    drained = farm.colleges[0]
    process, port, (model,) = drained.process, drained.port, drained.snapshot()["models"]
    worker = psutil.Process(model["pid"])
    for client in clients:
        client.start()
    try:
        eventually(lambda: statuses[200] > 2)
        stream.request("POST", "/v1/chat/completions", json.dumps(question | {"stream": True, "temperature": 0}),
                       {"Content-Type": "application/json", "X-Conversation": there})  # fmt: skip
        begun = stream.getresponse()
        first = begun.readline()
        worker.suspend()  # so that the stream lasts until the college has been seen to drain
        stopping = drained.coe.start("stop", "--drain")
        health = eventually(lambda: r if (r := drained.request("GET", "/healthz")).status == 503 else None)
        assert health.json["status"] == "draining"
        refused = drained.chat()
        assert (refused.status, refused.error["code"], "retry-after" in refused.headers) == (503, "draining", True)
        worker.resume()
        whole = Response(200, {}, first + begun.read())
        assert len(whole.chunks) > 20 and whole.chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")
        assert stopping.wait(timeout=200) == 0
        eventually(lambda: is_gone(process) and not _listens(port), 60)
        before = statuses[200]
        eventually(lambda: statuses[200] > before + 4)
    finally:
        with contextlib.suppress(psutil.Error, OSError):
            worker.resume()
        stop.set()
        for client in clients:
            client.join()
        stream.close()
    assert set(statuses) == {200}, statuses
    assert farm.machine(farm.chat(there)) == 1


@pytest.mark.long
def test_a_machine_that_is_killed_costs_no_question_and_none_is_said_so(farm: Farm) -> None:
    there = farm.conversation_on(0)
    assert farm.chat(there).status == 200
    process = farm.colleges[0].process
    process.kill()
    process.wait()
    answers = [farm.chat(there) for _ in range(4)]
    assert [(answer.status, farm.machine(answer)) for answer in answers] == [(200, 1)] * 4
    end(farm.colleges[1].process)
    nobody = farm.chat(there)
    assert (nobody.status, nobody.json["error"]["code"]) == (503, "unavailable")
    assert int(nobody.headers["retry-after"]) == 5
