"""Continuous batching on CUDA: answers of one model that share each run, against one alone and against generators that take turns.

The models are imported twice, with and without `--paged`. Answers are greedy and begin with random tokens, so models without sense
will do. Of a model in a worker: the rate of one answer and of eight, and how many tokens of the eight are those of the same
answers alone. Of a college: the same over HTTP. Of memory: the plan against the device's memory after the answers. The card has to
be otherwise idle.

    python benchmarks/continuous_batching.py worker MODEL PAGED
    python benchmarks/continuous_batching.py serve MODEL PAGED
    python benchmarks/continuous_batching.py memory PAGED 1x4096 8x4096 ...
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pairs import COE, ENVIRONMENT, print_table

from coe_cli.core.memory.footprint import ExactAccounting
from coe_cli.core.models.model_spec import BYTES_PER_MB, ModelSpec
from coe_cli.core.providers.cuda import CONTEXT_BYTES
from coe_cli.providers import runtime_of
from coe_cli.providers.settings import settings_from
from coe_cli.runtime.folders import folders
from coe_cli.runtime.model_folder.on_disk import spec_from_folder
from coe_cli.runtime.planning.plan_inputs import memory_of
from coe_cli.runtime.worker import protocol
from coe_cli.runtime.worker.single_worker import SingleWorker

CONTEXT, TOKENS, AT_ONCE, ROUNDS = 4096, 128, 8, 3
LENGTHS = (12, 40, 75, 150, 230, 300, 420, 500) * 2
"""Tokens of the prompts."""
Answer = list[str]
"""The text of each token."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("worker", "serve", "memory"))
    parser.add_argument("model")
    parser.add_argument("others", nargs="+")
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    if options.what == "memory":
        rows = memory(spec(options.model), [tuple(map(int, row.split("x"))) for row in options.others])
        print_table(
            (
                "slots",
                "context",
                "cache MB",
                "planned MB",
                "measured MB",
                "error",
                "after load, short prompt, long one, both in all slots",
            ),
            rows,
        )
    else:
        rows = [answers(options.what, name, options.results) for name in (options.model, *options.others)]
        print_table(
            ("model", "one, tokens/s", "eight", "ratio", "as alone: equal, in place, where all before are"), rows
        )


def spec(name: str) -> ModelSpec:
    return spec_from_folder(name, folders().models / name)


def prompts(vocab_size: int) -> list[list[int]]:
    import numpy as np

    rng = np.random.default_rng(7)
    return [rng.integers(300, min(vocab_size, 30000), length).tolist() for length in LENGTHS]


def answers(what: str, name: str, results: Path | None) -> list[object]:
    """A line of the table: all prompts alone, all in eights, and the rates of both."""
    with (Worker if what == "worker" else College)(name) as side:
        asked: Sequence[Any] = side.prompts()
        side.write(asked[:1])
        alone = [side.write([prompt])[0] for prompt in asked]
        groups = [asked[start : start + AT_ONCE] for start in range(0, len(asked), AT_ONCE)]
        together = [answer for group in groups for answer in side.write(group)]
        one, eight = ([rate(side.write, some) for _ in range(ROUNDS)] for some in (asked[4:5], asked[:AT_ONCE]))
    if results:
        with results.open("a", encoding="utf-8") as file:
            row = {"what": what, "name": name, "one": one, "eight": eight, "alone": alone, "together": together}
            file.write(json.dumps(row) + "\n")
    a, b = statistics.median(one), statistics.median(eight)
    whole, same, lasting = agreement(together, alone)
    return [name, f"{a:.0f}", f"{b:.0f}", f"{b / a:.2f}", f"{whole} of {len(alone)}, {same:.1%}, {lasting:.2%}"]


def rate(write: Callable[[Sequence[Any]], list[Answer]], some: Sequence[Any]) -> float:
    begin = time.perf_counter()
    write(some)
    return len(some) * TOKENS / (time.perf_counter() - begin)


def agreement(some: list[Answer], others: list[Answer]) -> tuple[int, float, float]:
    """Equal answers; share of equal tokens; share of equal tokens among those whose beginning is the same."""
    whole = sum(a == b for a, b in zip(some, others, strict=True))
    pairs = [list(zip(a, b, strict=False)) for a, b in zip(some, others, strict=True)]
    same = sum(x == y for answer in pairs for x, y in answer)
    lasting = [next((place for place, (x, y) in enumerate(answer) if x != y), len(answer)) for answer in pairs]
    compared = sum(min(place + 1, len(answer)) for place, answer in zip(lasting, pairs, strict=True))
    return whole, same / sum(map(len, pairs)), sum(lasting) / compared


class Worker(SingleWorker):
    """A model in a worker, each token told at once."""

    def __init__(self, name: str, slots: int = AT_ONCE, context_length: int = CONTEXT) -> None:
        super().__init__(600)
        self._spec, self._context = spec(name), context_length
        self.load(self._spec, slots, context_length)

    def prompts(self) -> list[list[int]]:
        return prompts(self._spec.shape.vocab_size)

    def write(self, some: Sequence[list[int]], tokens: int = TOKENS) -> list[Answer]:
        for number, ids in enumerate(some):
            self.generate(number, ids, self._context, tokens, measured=True)
        found: list[Answer] = [[] for _ in some]
        left = len(some)
        while left:
            message = self.receive()
            if isinstance(message, protocol.Token):
                found[message.request_id] += [*[""] * (message.tokens - 1), message.text]
            left -= isinstance(message, protocol.Done)
        return found


class College:
    """A model behind `coe serve`, asked by connections of their own; a piece of text may be several tokens."""

    def __init__(self, name: str) -> None:
        self._name, self._scratch = name, tempfile.TemporaryDirectory()
        place = Path(self._scratch.name)
        profile = {"vram_budget_mb": 60000, "max_concurrent_slots": AT_ONCE, "context_length": CONTEXT}
        profiles = {"default_profile": "card", "profiles": {"card": {**profile, "provider": spec(name).provider}}}
        (place / "profiles.yaml").write_text(json.dumps(profiles), encoding="utf-8")
        self._environment = ENVIRONMENT | {"COE_STATE_DIR": str(place / "state"), "COE_CONFIG_DIR": str(place)}
        command = [*COE, "serve", "--foreground", "--port", "18231", "-p", "card"]
        command += ["--profiles", str(place / "profiles.yaml")]
        self._process = subprocess.Popen(command, env=self._environment)
        for _ in range(600):
            try:
                self._ask("GET", "/healthz")
                break
            except OSError:
                time.sleep(0.1)

    def __enter__(self) -> College:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        self._process.wait(60)
        self._scratch.cleanup()

    def _ask(self, method: str, path: str, body: Any = None) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", 18231, timeout=300)
        connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200 and body is not None:
            raise RuntimeError(response.read().decode())
        return response

    def prompts(self) -> list[str]:
        return ["".join(chr(97 + token % 26) for token in ids) for ids in prompts(30000)]

    def write(self, some: Sequence[str]) -> list[Answer]:
        with ThreadPoolExecutor(len(some)) as pool:
            return list(pool.map(self._one, some))

    def _one(self, prompt: str) -> Answer:
        body = {"model": self._name, "prompt": prompt, "stream": True, "max_tokens": TOKENS, "temperature": 0}
        response = self._ask("POST", "/v1/completions", {**body, "ignore_eos": True, "min_tokens": TOKENS})
        pieces: Answer = []
        while line := response.readline():
            if line.startswith(b"data: {"):
                pieces += [choice["text"] for choice in json.loads(line[6:])["choices"]]
        return "".join(pieces).split()


def memory(model: ModelSpec, rows: Sequence[tuple[int, ...]]) -> list[list[object]]:
    """A worker for each of ``rows`` (slots, context): a prompt that fills the context, then as many answers as there are slots."""
    card = runtime_of(model.provider).open_memory(settings_from())
    counting, planned = ExactAccounting(), memory_of(model)
    assert card is not None
    found: list[list[object]] = []
    for slots, context in rows:
        each = [counting.slot(planned, context, before=number) for number in range(slots)]
        size = counting.weights_bytes(planned) - CONTEXT_BYTES + sum(slot.total_bytes for slot in each)
        before = card.used_mb() or 0.0
        ids = [(number * 31) % 20000 + 300 for number in range(context)]
        with Worker(model.name, slots, context) as worker:
            loaded = (card.used_mb() or 0.0) - before
            seen = []
            for lengths in ([100], [context - 65], [100] * slots, [min(600, context - 65)] * slots):
                worker.write([ids[number : number + length] for number, length in enumerate(lengths)], 64)
                seen.append((card.used_mb() or 0.0) - before)
            peak = max(seen)
        bare = CONTEXT_BYTES / BYTES_PER_MB
        expected, cache = size / BYTES_PER_MB, sum(slot.kv_bytes for slot in each) / BYTES_PER_MB
        error = f"{expected / (peak - bare) - 1:+.1%}"
        found.append(
            [
                slots,
                context,
                f"{cache:.0f}",
                f"{expected:.0f}",
                f"{peak - bare:.0f}",
                error,
                ", ".join(f"{used - bare:.0f}" for used in (loaded, *seen)),
            ]
        )
        time.sleep(2)  # the driver takes a moment to give the process's memory back
    return found


if __name__ == "__main__":
    main()
