"""What the college costs beside a bare ONNX Runtime GenAI loop that has its model loaded, alternating.

Rows: tokens a second through /v1 and through coe's own endpoint, time to first token when all is warm (the client is in this
process), a whole client process to its first token less the start of a process that imports the same, `coe ask` to the first
byte of its answer less the start of a process that imports what the command line is made of, and the time from nothing to a
healthy college.

Usage: python benchmarks/serve_overhead.py [ROUNDS]   (the embedded model must be there: coe models pull smollm2-135m)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial

from http_stream import PROMPT, stream_chat
from pairs import COE, COLUMNS, ENVIRONMENT, MODEL, Pair, alternate, first_byte_s, print_table, wall_s

MAX_TOKENS = 96
CONTEXT_LENGTH = 4096

_BARE = f"""
import json, os, sys, time
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime_genai as oga
config = oga.Config(sys.argv[1])
config.overlay(json.dumps({{"model": {{"decoder": {{"session_options": json.loads(sys.argv[2])}}}}}}))
model = oga.Model(config)
tokenizer = oga.Tokenizer(model)
params = oga.GeneratorParams(model)
params.set_search_options(max_length={CONTEXT_LENGTH}, do_sample=False)
generator = oga.Generator(model, params)
for number, line in enumerate(sys.stdin):
    chat = json.dumps([{{"role": "system", "content": str(number)}}, {{"role": "user", "content": {PROMPT!r}}}])
    generator.rewind_to(0)
    begin = time.perf_counter()
    ids = tokenizer.encode(tokenizer.apply_chat_template(chat, add_generation_prompt=True))
    generator.append_tokens(ids)
    stream, tokens, first_at = tokenizer.create_stream(), 0, 0.0
    while not generator.is_done() and tokens < int(line):
        generator.generate_next_token()
        tokens += 1
        first_at = first_at or time.perf_counter()
        os.write(2, stream.decode(generator.get_next_tokens()[0]).encode())
    elapsed = time.perf_counter() - first_at
    print(json.dumps([first_at - begin, (tokens - 1) / elapsed if tokens > 1 else 0.0]), flush=True)
"""
_CLIENT = """
import sys
from coe_cli.runtime.college import college_events as ce
from coe_cli.runtime.college.chat_request import ChatRequest
from coe_cli.runtime.server.college_client import find
from coe_cli.runtime.worker.protocol import ChatMessage, Sampling
client = find()
if len(sys.argv) > 1:
    messages = [ChatMessage("system", sys.argv[2]), ChatMessage("user", sys.argv[1])]
    for event in client.ask(ChatRequest(messages, model="smollm2-135m", max_tokens=1, sampling=Sampling(temperature=0))):
        if isinstance(event, ce.Delta):
            break
"""
_ASK = ["ask", "-m", MODEL, "--no-log", "--temperature", "0", "--max-tokens", "2"]
_IMPORTS = "import typer, msgspec, http.client, pathlib, platformdirs"


class Bare:
    """The loop in a process of its own that stays; its model is loaded once and its generator is reused."""

    def __init__(self) -> None:
        from coe_cli.providers.settings import default_session_options
        from coe_cli.runtime.folders import folders

        options = json.dumps(default_session_options("cpu"))
        command = [sys.executable, "-c", _BARE, str(folders().models / MODEL), options]
        self._process = subprocess.Popen(command, stdin=-1, stdout=-1, stderr=subprocess.DEVNULL, text=True)

    def run(self, tokens: int) -> tuple[float, float]:
        """Seconds to the first token, and tokens a second after it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{tokens}\n")
        self._process.stdin.flush()
        first_s, rate = json.loads(self._process.stdout.readline())
        return first_s, rate

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def over_http(port: int, tokens: int) -> tuple[float, float]:
    """The same of a client of /v1 with streaming."""
    stream = stream_chat(port, MODEL, tokens)
    return stream.first_s, stream.rate


def own_endpoint(tokens: int) -> tuple[float, float]:
    """The same of `coe ask`'s client."""
    global _number
    from coe_cli.runtime.college import college_events as ce
    from coe_cli.runtime.college.chat_request import ChatRequest
    from coe_cli.runtime.server.college_client import find
    from coe_cli.runtime.worker.protocol import ChatMessage, Sampling

    _number += 1
    messages = [ChatMessage("system", f"{_number}"), ChatMessage("user", PROMPT)]
    begin = time.perf_counter()
    client = find()
    assert client is not None
    request = ChatRequest(messages, model=MODEL, max_tokens=tokens, sampling=Sampling(temperature=0))
    times, tokens = [], 0
    for event in client.ask(request):
        if isinstance(event, ce.Delta):
            times.append(time.perf_counter())
        elif isinstance(event, ce.Finished):
            tokens = event.completion_tokens
    return times[0] - begin, (tokens - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0


_number = 0


def figure(ask: Callable[[int], tuple[float, float]], tokens: int, which: int) -> float:
    return ask(tokens)[which]


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    with tempfile.TemporaryDirectory() as folder:
        os.environ["COE_STATE_DIR"] = ENVIRONMENT["COE_STATE_DIR"] = folder
        from coe_cli.runtime.server.college_client import find_or_start, wait_until_gone
        from coe_cli.runtime.server.serve_options import ServeOptions

        begin = time.perf_counter()
        client = find_or_start(ServeOptions(keep_alive="10m"))
        healthy_s = time.perf_counter() - begin
        state, bare = client.state, Bare()
        client.close()
        try:
            bare.run(2)
            over_http(state.port, 2)
            rows = []
            for name, ask in (("/v1, streaming", partial(over_http, state.port)), ("own endpoint", own_endpoint)):
                rate = alternate(partial(figure, ask, MAX_TOKENS, 1), partial(figure, bare.run, MAX_TOKENS, 1), rounds)
                rows.append(rate.cells(f"{name}, decode", "tokens/s", "≥ 0.97"))
                first = alternate(partial(figure, ask, 2, 0), partial(figure, bare.run, 1, 0), rounds)
                rows.append(first.difference_cells(f"{name}, first token", "≤ 60 ms"))
            python = [sys.executable, "-c"]
            process = alternate(
                lambda: wall_s([*python, _CLIENT, PROMPT, str(time.perf_counter_ns())[-4:]]),
                lambda: wall_s([*python, _CLIENT]) + bare.run(1)[0],
                rounds,
            )
            rows.append(process.difference_cells("client process, first token", "≤ 60 ms"))
            whole = alternate(
                lambda: first_byte_s([*COE, *_ASK, "-s", str(time.perf_counter_ns())[-4:], PROMPT]),
                lambda: wall_s([*python, _IMPORTS]) + bare.run(1)[0],
                rounds,
            )
            rows.append(whole.difference_cells("`coe ask`, first byte", "≤ 60 ms"))
            start = Pair([healthy_s], [wall_s([*python, "import uvicorn"])])
            rows.append(start.cells("from nothing to healthy (bare: import uvicorn)", "s", "none"))
            print_table(COLUMNS, rows)
        finally:
            bare.close()
            find_or_start().stop()
            wait_until_gone(20)


if __name__ == "__main__":
    main()
