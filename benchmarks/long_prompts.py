"""How long `/healthz` takes while clients send prompts of 2 MB, and what the college's memory comes to.

Usage: python benchmarks/long_prompts.py [CLIENTS]   (the embedded model must be there: coe models pull smollm2-135m)
"""

from __future__ import annotations

import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from pairs import COE, MODEL

TEXT = "The keeper wrote down the weather of the day. " * 41_000


def request(url: str, path: str, body: bytes | None = None) -> int:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=120)
    try:
        connection.request("POST" if body else "GET", path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


def main() -> None:
    clients = int(sys.argv[1]) if len(sys.argv) > 1 else 24
    with tempfile.TemporaryDirectory() as folder:
        places = {f"COE_{kind}_DIR": f"{folder}/{kind.lower()}" for kind in ("STATE", "CONFIG", "CACHE")}
        environment = {**os.environ, **places, "COE_NO_ROUTE": "1"}
        url = subprocess.run(
            [*COE, "serve"], env=environment, check=True, capture_output=True, text=True
        ).stdout.strip()
        try:
            measure(url, clients, json.loads((Path(folder) / "state" / "college.json").read_text())["pid"])
        finally:
            subprocess.run([*COE, "stop"], env=environment, check=True, capture_output=True)


def measure(url: str, clients: int, pid: int) -> None:
    def body(text: str) -> bytes:
        return json.dumps({"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 1}).encode()

    assert request(url, "/v1/chat/completions", body("Hi")) == 200
    long, statuses = body(TEXT), []
    threads = [
        threading.Thread(target=lambda: statuses.append(request(url, "/v1/chat/completions", long)))
        for _ in range(clients)
    ]
    college, peak_mb, times = psutil.Process(pid), 0.0, []
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        begin = time.perf_counter()
        assert request(url, "/healthz") == 200
        times.append((time.perf_counter() - begin) * 1000)
        peak_mb = max(peak_mb, college.memory_info().rss / 2**20)
        time.sleep(0.005)
    times.sort()
    print(
        f"{clients} clients, {len(long) / 1e6:.1f} MB each: {sorted(set(statuses))}, {len(times)} answers of /healthz"
    )
    print(
        f"median {statistics.median(times):.0f} ms, 95th percentile {times[int(len(times) * 0.95)]:.0f} ms, longest {times[-1]:.0f} ms"
    )
    print(f"college at most {peak_mb:.0f} MB")


if __name__ == "__main__":
    main()
