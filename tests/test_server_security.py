"""Who the server listens to: names, web pages, keys, the private endpoints, and what its log holds."""

from __future__ import annotations

import stat
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Coe
from hypothesis import given
from hypothesis import strategies as st
from serving import Served, serving

from coe_cli.runtime.server.guard import Guard
from coe_cli.runtime.server.http_errors import HttpError

KEY = "a-key-for-tests"


def _admits(guard: Guard, host: str) -> bool:
    try:
        guard.check_origin({b"host": host.encode("latin-1")})
    except HttpError as error:
        assert error.status == 403
        return False
    return True


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8080", "localhost:8080", "LOCALHOST:8080", "[::1]:8080", "localhost.:8080"]
)
def test_names_of_the_loopback_are_ours(host: str) -> None:
    assert _admits(Guard("127.0.0.1", 8080, None, "t"), host)


@pytest.mark.parametrize(
    "host",
    [
        "", "evil.example", "evil.example:8080", "127.0.0.1", "127.0.0.1:80", "127.0.0.1:8080.evil.example",
        "localhost.evil.example:8080", "127.0.0.1.nip.io:8080", "192.168.0.9:8080", "::1:8080", "[::1]", "[evil]:8080",
        "localhost:8080:8080", "localhost:+8080", "localhost:", "127.1:8080x", "0.0.0.0:8080", "[fe80::1%25eth0]:8080",
    ],
)  # fmt: skip
def test_other_names_are_not(host: str) -> None:
    assert not _admits(Guard("127.0.0.1", 8080, None, "t"), host)


@given(st.text(st.characters(max_codepoint=255), max_size=30))
def test_no_made_up_name_gets_through(host: str) -> None:
    if _admits(Guard("127.0.0.1", 8080, None, "t"), host):
        name = host.lower().removesuffix(":8080").rstrip(".").strip("[]")
        assert name == "localhost" or name.startswith(("127.", "::1", "0:", "::ffff:127.")) or set(name) <= set("0:1")


def test_on_every_interface_addresses_are_ours_and_strange_names_are_not() -> None:
    guard = Guard("0.0.0.0", 8080, "k", "t")
    assert _admits(guard, "192.168.0.9:8080") and _admits(guard, "[fd00::9]:8080") and _admits(guard, "localhost:8080")
    assert not _admits(guard, "evil.example:8080")


def test_a_balancers_name_is_ours_with_any_port_and_no_other_name_is() -> None:
    guard = Guard("127.0.0.1", 8080, None, "t", ["Coe.internal"])
    assert _admits(guard, "coe.internal") and _admits(guard, "COE.internal:1234") and _admits(guard, "localhost:8080")
    assert not any(_admits(guard, host) for host in ("evil.example", "coe.internal.evil.example", "localhost", ""))


def test_port_80_may_be_left_out() -> None:
    assert _admits(Guard("127.0.0.1", 80, None, "t"), "localhost")


@pytest.fixture(scope="module")
def served(shared_coe: Coe) -> Iterator[Served]:
    with serving(shared_coe, COE_API_KEY=KEY) as running:
        yield running


def test_dns_rebinding_and_web_pages_are_refused_everywhere(served: Served) -> None:
    for path in ("/healthz", "/metrics", "/v1/models", "/coe/snapshot", "/openapi.json"):
        for name, value in (
            ("host", f"evil.example:{served.port}"),
            ("origin", "http://evil.example"),
            ("origin", "null"),
        ):
            headers: dict[str, Any] = {"authorization": f"Bearer {KEY}", name: value}
            answer = served.request("GET", path, **headers)
            assert answer.status == 403, path
            assert "access-control-allow-origin" not in answer.headers
    assert served.request("OPTIONS", "/v1/models", origin="http://evil.example").status == 403


def test_the_key_opens_v1_and_nothing_else_does(served: Served) -> None:
    for given_key in ("", "Bearer ", f"Bearer {KEY}x", f"Basic {KEY}", KEY, "Bearer \xff"):
        answer = served.request("GET", "/v1/models", authorization=given_key)
        assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
    assert served.request("GET", "/metrics").status == 401
    assert served.request("GET", "/openapi.json").status == 401
    assert served.request("GET", "/v1/models", authorization=f"Bearer {KEY}").status == 200
    assert served.request("GET", "/v1/models", authorization=f"bearer {served.state['token']}").status == 200
    assert served.request("GET", "/healthz").status == 200


def test_the_private_endpoints_need_the_state_files_token(served: Served) -> None:
    for method, path in (
        ("GET", "snapshot"),
        ("POST", "stop"),
        ("POST", "unload"),
        ("POST", "ask"),
        ("GET", "nothing"),
    ):
        for headers in ({}, {"authorization": f"Bearer {KEY}"}):
            assert served.request(method, f"/coe/{path}", body=b"{}", **headers).status == 401
    token = f"Bearer {served.state['token']}"
    assert served.request("GET", "/coe/snapshot", authorization=token).status == 200
    assert served.request("POST", "/coe/ask", body=b"{}", authorization=token).status == 400
    assert served.request("POST", "/coe/ask", body=b"[" * 100_000, authorization=token).status == 400


def test_the_key_is_nowhere_to_be_read(served: Served) -> None:
    assert not any(KEY in part for part in served.process.cmdline())
    assert not any(
        KEY.encode() in path.read_bytes() for path in (served.coe.folder / "state").rglob("*") if path.is_file()
    )


SECRET = "my-secret-question"


def test_the_log_holds_requests_and_no_prompts(served: Served) -> None:
    headers: dict[str, Any] = {"authorization": f"Bearer {KEY}"}
    body = {"model": "smollm2-135m", "messages": [{"role": "user", "content": SECRET}], "max_tokens": 1}
    assert served.request("POST", "/v1/chat/completions", body, **headers).status == 200
    served.request("GET", "/v1/models/a%0Aforged", **headers)
    path = served.coe.folder / "state" / "serve.log"
    text = path.read_text()
    assert "POST /v1/chat/completions 200" in text
    assert SECRET not in text
    assert "\nforged" not in text
    if sys.platform != "win32":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.long
def test_prompts_are_logged_when_asked_for(coe: Coe) -> None:
    with serving(coe, "--log-prompts") as served:
        assert served.chat(SECRET, max_tokens=1).status == 200
        assert SECRET in (coe.folder / "state" / "serve.log").read_text()


def test_another_address_with_a_key(coe: Coe) -> None:
    with serving(coe, "--host", "0.0.0.0", COE_API_KEY=KEY) as served:
        served.url = served.url.replace("0.0.0.0", "127.0.0.1")
        assert served.request("GET", "/v1/models").status == 401
        assert served.request("GET", "/v1/models", authorization=f"Bearer {KEY}").status == 200
        assert served.status()["pid"] == served.process.pid


def test_ipv6(coe: Coe) -> None:
    result = coe.run("serve", "--host", "::1", "--keep-alive", "10m")
    if "cannot be used" in result.stderr or "not an address" in result.stderr:
        pytest.skip("no IPv6 here")
    with serving(coe) as served:
        assert served.url.startswith("http://[::1]:")
        assert served.request("GET", "/healthz").status == 200
        assert served.request("GET", "/healthz", host=f"localhost:{served.port}").status == 200
        assert served.request("GET", "/healthz", host="[::1]:1").status == 403
