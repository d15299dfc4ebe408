"""From a clean machine to the first routed answer: wall and CPU time of a first question with empty folders.

    python benchmarks/first_answer.py

The question fetches and imports the embedded model, fetches and writes the embedder, is routed and answered; the second one finds
all of that. Fetching is part of the wall time. Everything runs within the command's process and its children (`--no-serve`), so
that their CPU time is counted.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pairs import print_table

QUESTIONS = ("What is a deadlock?", "Write an SQL query that counts the orders of each customer")


def ask(question: str, environment: dict[str, str]) -> tuple[float, float, float]:
    """Seconds to the first byte of the answer and to the end of the process, and CPU seconds."""
    command = [
        sys.executable,
        "-m",
        "coe_cli",
        "ask",
        "-p",
        "embedded",
        "--no-serve",
        "--explain",
        "--max-tokens",
        "64",
    ]
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with subprocess.Popen([*command, question], env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        first = time.perf_counter() - begin
        process.stdout.read()
        code = process.wait()
    if code:
        sys.exit(code)
    whole = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return first, whole, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        folders = {f"COE_{name}_DIR": str(Path(home) / name.lower()) for name in ("MODELS", "CONFIG", "STATE", "CACHE")}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("COE_")} | folders
        rows = [[question, *(f"{seconds:.1f} s" for seconds in ask(question, environment))] for question in QUESTIONS]
    print_table(["question", "first token", "end of the process", "CPU"], rows)


if __name__ == "__main__":
    main()
