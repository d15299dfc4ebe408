"""What Ray costs: the same rows of 64 tokens through the engine on this machine and through Ray on one node.

Usage: ray_overhead.py [--rounds N] [--rows N]. Each figure is tokens a second between two answers of a run, the twelfth
and the last but two, so that neither loads count nor a worker that has nothing left to do; the runs alternate. Both sides must
have had a worker for each slot, because two workers with one thread each are faster than one with two threads: otherwise
there is no figure.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping

from pairs import COLUMNS, ROOT, alternate, print_table

sys.path.insert(0, str(ROOT))

from coe_cli.core.models.model_spec import ModelSpec
from coe_cli.providers.settings import worker_threads
from coe_cli.runtime.batch.batch_engine import Engine, PreparedRow, RowResult
from coe_cli.runtime.batch.client_engine import client_engine
from coe_cli.runtime.client.client import Client
from coe_cli.runtime.client.local import LocalOptions, local_client
from coe_cli.runtime.college.chat_request import ChatRequest
from coe_cli.runtime.college.college_events import Ask
from coe_cli.runtime.fleet.ray_setup import ray_engine
from coe_cli.runtime.folders import catalog_paths, folders, profile_paths
from coe_cli.runtime.model_folder.on_disk import spec_from_folder
from coe_cli.runtime.settings import load_catalog, load_profiles
from coe_cli.runtime.worker.protocol import ChatMessage, Sampling

MODEL = "smollm2-135m"
TOKENS = 64
LEAD = 12
"""So many answers are not counted: until then every worker has loaded and writes."""
TAIL = 2
"""Nor are these: the last of them are written by one worker alone."""


class Rows:
    """So many rows of one model, each with a prompt of its own."""

    def __init__(self, spec: ModelSpec, count: int) -> None:
        self._spec, self._count, self._taken = spec, count, 0

    def remaining(self) -> Mapping[str, int]:
        left = self._count - self._taken
        return {MODEL: left} if left else {}

    def spec(self, model: str) -> ModelSpec:
        return self._spec

    def take(self, model: str) -> PreparedRow | RowResult | None:
        if self._taken == self._count:
            return None
        self._taken += 1
        text = f"Tell a long story about the number {self._taken}."
        messages, sampling = [ChatMessage("user", text)], Sampling(temperature=0)
        request = ChatRequest(messages, model=MODEL, max_tokens=TOKENS, sampling=sampling)
        return PreparedRow(self._taken, request, Ask(self._spec, messages, max_tokens=TOKENS, sampling=sampling))


def tokens_per_s(new_engine: Callable[[Rows], Engine], spec: ModelSpec, count: int, workers: int) -> float:
    """Tokens of a run's answers after ``LEAD`` and before ``TAIL`` of them, ÷ the time in which they came.

    Raises:
        RuntimeError: a row failed, or there were not ``workers`` workers.
    """
    rows = Rows(spec, count)
    engine = new_engine(rows)
    try:
        tokens, begin, end = 0, 0.0, 0.0
        for number, result in enumerate(engine.run(rows), 1):
            if result.answer is None:
                raise RuntimeError(f"a row failed: {result.failure}")
            if number == LEAD:
                begin = time.perf_counter()
            elif LEAD < number <= count - TAIL:
                tokens += result.answer.usage.completion_tokens
                end = time.perf_counter()
    finally:
        engine.close()
    loads = engine.status().loads
    if loads != workers:
        raise RuntimeError(f"{loads} workers wrote and not {workers}: the two engines cannot be compared")
    return tokens / (end - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--rows", type=int, default=60)
    arguments = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    profile, catalog = load_profiles(profile_paths()).select("embedded"), load_catalog(catalog_paths())
    workers = min(profile.max_concurrent_slots, worker_threads())
    models = folders().models
    spec = spec_from_folder(MODEL, models / MODEL)

    def on_ray() -> float:
        engine = lambda rows: ray_engine(profile, models, address=None, retries=0)  # noqa: E731
        return tokens_per_s(engine, spec, arguments.rows, workers)

    def client(replicas: int | None) -> tuple[Client, bool]:
        return local_client(catalog, profile, options=LocalOptions(batch=True, replicas=replicas)), True

    def local() -> float:
        engine = lambda rows: client_engine(rows, catalog, profile, client, retries=0)  # noqa: E731
        return tokens_per_s(engine, spec, arguments.rows, workers)

    pair = alternate(on_ray, local, arguments.rounds)
    print_table((COLUMNS[0], "Ray", "local", *COLUMNS[3:]), [pair.cells("rows of 64 tokens", "tokens/s", "≥ 0.95")])


if __name__ == "__main__":
    main()
