"""How fast routing is: a fresh process, a thousand questions on stdin, a running college, and what it adds to `coe ask`.

Usage: python benchmarks/routing_speed.py [ROUNDS]   (the router must be prepared: coe route --rebuild)
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pairs import COE, alternate, first_byte_s, print_table

from coe_cli.runtime.folders import catalog_paths
from coe_cli.runtime.routing.router_cache import examples_digest, training_set
from coe_cli.runtime.settings import load_catalog

QUESTION = "Which customers have not ordered anything since March?"


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    catalog = load_catalog(catalog_paths())
    thousand = [" ".join(text.split()) for text, _ in training_set(catalog).single][:1000]
    with tempfile.TemporaryDirectory() as state:
        os.environ["COE_STATE_DIR"] = state  # a college of our own, and none in the first two measurements
        fresh = [seconds([*COE, "route", QUESTION]) for _ in range(rounds + 1)][1:]
        many = [
            seconds([*COE, "route", "-", "--format", "jsonl"], "\n".join(thousand)) for _ in range(max(1, rounds // 3))
        ]
        routed = [*COE, "ask", "--no-serve", "--no-log", "--max-tokens", "4", "--format", "quiet"]
        named = [*routed, "-e", "sql_query", QUESTION]
        first = alternate(lambda: first_byte_s([*routed, QUESTION]), lambda: first_byte_s(named), rounds)
        in_college, whole = college(rounds * 10, examples_digest(catalog))
    _, routed_s, named_s, ratio, spread, _ = first.cells("", "s", "")
    rows = [
        row("a fresh process, one question", fresh, "s", 2, "≤ 0.6 s"),
        row(f"{len(thousand)} questions on stdin", many, "s", 1, "≤ 15 s"),
        row("one question in a running college", in_college, "ms", 1, "≤ 20 ms"),
        row("`coe route` with a running college", whole, "s", 2, ""),
        (f"`ask --no-serve` to the first token, {routed_s}, ÷ with `-e`, {named_s}", ratio, spread, ""),
    ]
    print_table(("measure", "median", "least–most", "limit"), rows)


def college(rounds: int, digest: str) -> tuple[list[float], list[float]]:
    """Milliseconds from request to decision, and seconds of whole `coe route` processes, with a college running."""
    from coe_cli.core.routing.router import RouteRequest
    from coe_cli.runtime.server import college_client

    client = college_client.find_or_start()
    times = []
    try:
        for number in range(rounds + 1):
            begin = time.perf_counter()
            client.route(RouteRequest([f"{QUESTION} And number {number}?"], digest))
            times.append((time.perf_counter() - begin) * 1000)
        whole = [seconds([*COE, "route", QUESTION]) for _ in range(5)]
    finally:
        client.stop()
        college_client.wait_until_gone(10)
    return times[1:], whole


def seconds(command: list[str], stdin: str = "") -> float:
    begin = time.perf_counter()
    subprocess.run(command, input=stdin.encode(), check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def row(name: str, times: list[float], unit: str, digits: int, limit: str) -> tuple[str, ...]:
    middle = statistics.median(times)
    return name, f"{middle:.{digits}f} {unit}", f"{min(times):.{digits}f}–{max(times):.{digits}f}", limit


if __name__ == "__main__":
    main()
