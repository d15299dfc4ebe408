"""A streaming client of /v1/chat/completions that only looks at the clock; the same for every server."""

from __future__ import annotations

import http.client
import itertools
import json
import re
import time
from typing import NamedTuple

PROMPT = "Tell a long story about a lighthouse keeper, his daughter, a storm and a ship."
_TOKENS = re.compile(rb'"completion_tokens":\s*(\d+)')
_numbers = itertools.count(1)


class Stream(NamedTuple):
    """Seconds to the first piece of text and to the end, and tokens a second after the first."""

    first_s: float
    total_s: float
    rate: float


def stream_chat(port: int, model: str, tokens: int, prompt: str = PROMPT) -> Stream:
    """Ask on a connection of its own. The unlike first words keep a cached prompt from being used."""
    body = {
        "model": model, "stream": True, "stream_options": {"include_usage": True}, "max_tokens": tokens, "temperature": 0,
        "messages": [{"role": "system", "content": f"{next(_numbers)}"}, {"role": "user", "content": prompt}],
    }  # fmt: skip
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    begin = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise RuntimeError(response.read().decode())
    times, written = [], 0
    while line := response.readline():
        if b'"content":"' in line and b'"content":""' not in line:
            times.append(time.perf_counter())
        if found := _TOKENS.search(line):
            written = int(found[1])
    connection.close()
    rate = (written - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0
    return Stream(times[0] - begin, times[-1] - begin, rate)
