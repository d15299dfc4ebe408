"""What Ray costs: the same rows of 64 tokens through the engine on this machine and through Ray on one node.

Usage: ray_overhead.py [--rounds N] [--rows N]. Each figure is tokens a second between the sixth and the last answer of a
run, so loads do not count; the runs alternate.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping

from pairs import COLUMNS, ROOT, alternate, print_table

sys.path.insert(0, str(ROOT))

from coe_cli.core.model_spec import ModelSpec, spec_from_folder
from coe_cli.core.profile import load_profiles
from coe_cli.runtime.batch.batch_engine import Engine, PreparedRow, RowResult
from coe_cli.runtime.batch.batch_setup import local_engine
from coe_cli.runtime.college.college_events import Ask
from coe_cli.runtime.fleet.ray_setup import ray_engine
from coe_cli.runtime.folders import folders, profile_paths
from coe_cli.runtime.worker.protocol import ChatMessage, Sampling

MODEL = "smollm2-135m"
TOKENS = 64
LEAD = 6
"""So many answers are not counted: until then every worker has loaded and writes."""


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
        ask = Ask(self._spec, [ChatMessage("user", text)], max_tokens=TOKENS, sampling=Sampling(temperature=0))
        return PreparedRow(self._taken, ask)


def tokens_per_s(new_engine: Callable[[], Engine], spec: ModelSpec, count: int) -> float:
    """Tokens of a run's answers after the sixth, ÷ the time from the sixth to the last."""
    engine = new_engine()
    try:
        tokens, begin = 0, 0.0
        for number, result in enumerate(engine.run(Rows(spec, count)), 1):
            if result.answer is None:
                raise RuntimeError(f"a row failed: {result.failure}")
            if number > LEAD:
                tokens += result.answer.usage.completion_tokens
            elif number == LEAD:
                begin = time.perf_counter()
        return tokens / (time.perf_counter() - begin)
    finally:
        engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--rows", type=int, default=22)
    arguments = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    profile = load_profiles(profile_paths()).select("embedded")
    models = folders().models
    spec = spec_from_folder(MODEL, models / MODEL)
    on_ray = lambda: tokens_per_s(lambda: ray_engine(profile, models, address=None, retries=0), spec, arguments.rows)  # noqa: E731
    local = lambda: tokens_per_s(lambda: local_engine(profile, retries=0), spec, arguments.rows)  # noqa: E731
    pair = alternate(on_ray, local, arguments.rounds)
    print_table((COLUMNS[0], "Ray", "local", *COLUMNS[3:]), [pair.cells("rows of 64 tokens", "tokens/s", "≥ 0.95")])


if __name__ == "__main__":
    main()
