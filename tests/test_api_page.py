"""Web pages: those that were allowed may ask, coe's own works in a real browser, and no other does."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MODEL, Coe, eventually
from serving import Served, serving

PAGE, OTHER = "http://127.0.0.1:5173", "http://evil.example"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def served(shared_coe: Coe) -> Iterator[Served]:
    with serving(shared_coe, "--cors-origin", PAGE, "--cors-origin", "https://app.example/") as running:
        yield running


def test_a_page_that_was_allowed_may_ask(served: Served) -> None:
    wanted: dict[str, Any] = {
        "access_control_request_method": "POST",
        "access_control_request_headers": "authorization, x-extra",
    }
    for origin in (PAGE, "https://app.example"):
        preflight = served.request("OPTIONS", "/v1/chat/completions", origin=origin, **wanted)
        assert (preflight.status, preflight.headers["access-control-allow-origin"]) == (204, origin)
        assert preflight.headers["access-control-allow-headers"] == "authorization, x-extra"
        assert "access-control-allow-credentials" not in preflight.headers and preflight.headers["vary"] == "Origin"
        for path, status in (("/v1/models", 200), ("/v1/nothing", 404)):
            answer = served.request("GET", path, origin=origin)
            assert (answer.status, answer.headers["access-control-allow-origin"]) == (status, origin)
        assert served.request("OPTIONS", "/coe/stop", origin=origin, **wanted).status == 401


def test_others_may_not(served: Served) -> None:
    for origin in (
        OTHER,
        "null",
        PAGE + "1",
        "http://127.0.0.1",
        f"https://127.0.0.1:{served.port}",
        "http://localhost:1",
    ):
        for method in ("GET", "OPTIONS"):
            answer = served.request(method, "/v1/models", origin=origin, access_control_request_method="GET")
            assert answer.status == 403 and "access-control-allow-origin" not in answer.headers, origin
    own = f"http://127.0.0.1:{served.port}"
    assert served.request("GET", "/v1/models", origin=own).status == 200
    assert (
        served.request(
            "GET", "/v1/models", origin=f"http://evil.example:{served.port}", host=f"evil.example:{served.port}"
        ).status
        == 403
    )


@pytest.mark.long
def test_every_page_only_with_a_key(coe: Coe) -> None:
    refused = coe.run("serve", "--cors-origin", "*")
    assert refused.code == 2 and "API key" in refused.stderr
    with serving(coe, "--cors-origin", "*", "--no-page", COE_API_KEY="a-key") as served:
        answer = served.request("GET", "/v1/models", origin=OTHER)
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (401, OTHER)
        assert served.request("GET", "/v1/models", origin=OTHER, x_api_key="a-key").status == 200
        assert served.request("GET", "/").status == 404


def test_the_page_may_load_nothing_from_elsewhere(served: Served) -> None:
    answer = served.request("GET", "/")
    policy = answer.headers["content-security-policy"]
    assert answer.status == 200 and "default-src 'none'" in policy and "'unsafe-inline'" not in policy
    assert b"http://" not in answer.body and b"https://" not in answer.body


class Browser:
    """Chromium without a window, driven over its pipe (Chrome DevTools Protocol)."""

    def __init__(self, profile: Path) -> None:
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        options = f"--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --user-data-dir={profile}"
        command = f"exec {CHROMIUM} {options} --remote-debugging-pipe 3<&{to_browser} 4>&{from_browser}"
        # bash, since other shells take only one digit for a descriptor
        self.process = subprocess.Popen(
            ["bash", "-c", command],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._answers: dict[int, Any] = {}
        self.complaints: list[str] = []
        self._sent = 0
        self._session: str | None = None
        threading.Thread(target=self._listen, daemon=True).start()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def _listen(self) -> None:
        rest = b""
        with contextlib.suppress(OSError):
            while data := os.read(self._in, 65536):
                *messages, rest = (rest + data).split(b"\0")
                for message in map(json.loads, messages):
                    if "id" in message:
                        self._answers[message["id"]] = message
                    elif message["method"] == "Runtime.exceptionThrown":
                        self.complaints.append(json.dumps(message["params"]))
                    elif message["method"] == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
                        self.complaints.append(message["params"]["entry"]["text"])

    def call(self, method: str, **params: Any) -> Any:
        self._sent += 1
        number = self._sent
        message = {"id": number, "method": method, "params": params}
        os.write(
            self._out, json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode() + b"\0"
        )
        answer = eventually(lambda: self._answers.pop(number, None))
        assert "error" not in answer, answer
        return answer["result"]

    def value(self, expression: str) -> Any:
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._out)


@pytest.fixture(scope="module")
def browser(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser of a phone's size with the page open, and the embedded model chosen."""
    if CHROMIUM is None or sys.platform == "win32":
        pytest.skip("no Chromium here")
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    try:
        browser.call("Emulation.setDeviceMetricsOverride", width=360, height=640, deviceScaleFactor=2, mobile=True)
        browser.call("Page.navigate", url=served.url + "/")
        eventually(
            lambda: browser.value(f"[...document.querySelectorAll('#who option')].some(o => o.value == '{MODEL}')")
        )
        browser.value(f"document.querySelector('#who').value = '{MODEL}'")
        yield browser
    finally:
        browser.close()


def test_a_conversation_in_the_page(browser: Browser) -> None:
    assert browser.value("document.activeElement.id") == "question"
    browser.call("Input.insertText", text="The capital of France is")
    for kind in ("keyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13)
    eventually(lambda: "Paris" in (browser.value("document.querySelector('article.assistant div')?.textContent") or ""))
    assert MODEL in browser.value("document.querySelector('article.assistant small').textContent")
    eventually(lambda: browser.value("document.querySelector('#send').textContent") == "Send")
    assert browser.value("document.querySelector('#question').value") == ""
    assert browser.value("document.documentElement.scrollWidth <= innerWidth")
    browser.value("document.querySelector('#card').open = true")
    eventually(lambda: browser.value("document.querySelector('#models button')?.textContent") == "Unload")
    rows = browser.value(
        "[...document.querySelectorAll('#models tr')].map(row => [...row.cells].map(cell => cell.textContent))"
    )
    ((name, state, memory, _),) = rows  # experts and auto are names of a model, and are loaded with it
    assert (name, state) == (MODEL, "ready") and memory not in ("", "0 MB")
    browser.value("document.querySelector('#models button').click()")
    eventually(lambda: browser.value("document.querySelector('#models button')?.textContent") == "Load")
    assert browser.complaints == []


def test_a_look_at_the_models_leaves_the_keyboard_where_it_is(browser: Browser) -> None:
    browser.value("document.querySelector('#card').open = true")
    eventually(lambda: browser.value("document.querySelector('#models button')?.textContent"))
    browser.value("document.querySelector('#models button').focus(), window.option = $('who').options[0]")
    browser.call("Runtime.evaluate", expression="look()", awaitPromise=True)
    assert browser.value("document.activeElement.ariaLabel").endswith(MODEL)
    assert browser.value("window.option === $('who').options[0]"), "an open list would have been closed"


@pytest.mark.long
def test_a_new_conversation_has_nothing_of_one_that_was_being_answered(browser: Browser) -> None:
    browser.value("ask('Tell a long story about a house.'), undefined")
    eventually(lambda: browser.value("document.querySelector('#log article.assistant:last-of-type div').textContent"))
    browser.value("document.querySelector('#new').click()")
    eventually(lambda: browser.value("document.querySelector('#send').textContent") == "Send")
    assert browser.value("turns.length") == 0 and browser.value("document.querySelector('#log').childElementCount") == 0
    assert browser.complaints == []
