"""`coe batch` against bare ONNX Runtime GenAI processes on the same rows and cores, and how often it loads four models.

Usage: batch.py [--rows N] [--tokens N] [--rounds N]. Both sides are whole processes, from their start to their end, loads
and imports included. The bare side is the faster of two: one process with a thread for each core, or one process with one
thread for each core, each with its part of the rows. For the loads, four copies of the model under other names are
installed and the pool has room for two; the rows name them in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from pairs import COE, COLUMNS, ROOT, alternate, print_table

sys.path.insert(0, str(ROOT))

from coe_cli.providers.settings import usable_cores
from coe_cli.runtime.college.costs import cost_in
from coe_cli.runtime.folders import folders, profile_paths
from coe_cli.runtime.model_folder.on_disk import spec_from_folder
from coe_cli.runtime.settings import load_profiles

MODEL = "smollm2-135m"
SYSTEM = "You are a helpful assistant. Answer the question briefly and in plain words."
COPIES = 4


def questions(count: int) -> list[str]:
    """Some of the router's example questions, spread over all experts."""
    examples = yaml.safe_load((ROOT / "profiles" / "routing_examples.yaml").read_text(encoding="utf-8"))
    texts: list[str] = []

    def collect(value: object) -> None:
        if isinstance(value, str) and 20 < len(value) < 200:
            texts.append(value)
        elif isinstance(value, dict | list):
            for each in value.values() if isinstance(value, dict) else value:
                collect(each)

    collect(examples)
    return texts[:: max(1, len(texts) // count)][:count]


def write_rows(path: Path, count: int, tokens: int, models: list[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number, question in enumerate(questions(count)):
            turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
            row = {"messages": turns, "model": models[number % len(models)], "max_tokens": tokens, "temperature": 0}
            file.write(json.dumps(row) + "\n")


class Throughput:
    """Tokens a second of either side, over the whole life of its processes."""

    def __init__(self, folder: Path, rows: int, tokens: int) -> None:
        self._folder, self._rows = folder, folder / "rows.jsonl"
        self._model = folders().models / MODEL
        write_rows(self._rows, rows, tokens, [MODEL])
        self._runs = 0
        cores = usable_cores()
        tried = {(count, cores // count): self._bare(count, cores // count) for count in (1, cores)}
        self.processes, self.threads = max(tried, key=lambda kind: tried[kind])
        self.tried = tried

    def coe(self) -> float:
        self._runs += 1
        out = self._folder / f"out-{self._runs}.jsonl"
        begin = time.perf_counter()
        subprocess.run([*COE, "batch", str(self._rows), "-o", str(out), "-q"], check=True, cwd=ROOT)
        elapsed_s = time.perf_counter() - begin
        answers = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        return sum(answer["usage"]["completion_tokens"] for answer in answers) / elapsed_s

    def bare(self) -> float:
        return self._bare(self.processes, self.threads)

    def _bare(self, processes: int, threads: int) -> float:
        script = str(ROOT / "benchmarks" / "bare_rows.py")
        begin = time.perf_counter()
        running = [
            subprocess.Popen(
                [sys.executable, script, str(self._model), str(self._rows), str(threads), str(part), str(processes)],
                stdout=subprocess.PIPE,
            )
            for part in range(processes)
        ]
        tokens = sum(int(process.communicate()[0]) for process in running)
        elapsed_s = time.perf_counter() - begin
        if any(process.returncode for process in running):
            raise RuntimeError("a bare process failed")
        return tokens / elapsed_s


def loads(folder: Path, rows: int) -> tuple[int, int]:
    """Loads of a batch over four models with room for two, and the fewest possible."""
    models = folder / "models"
    names = [f"copy-{number}" for number in range(1, COPIES + 1)]
    for name in names:
        shutil.copytree(folders().models / MODEL, models / name, copy_function=os.link)
    shipped = load_profiles(profile_paths()).select("embedded")
    cost, _ = cost_in(shipped)(spec_from_folder(MODEL, folders().models / MODEL))
    need_mb = cost.weights_mb + cost.kv_mb + cost.activation_mb
    budget_mb = shipped.fixed_mb + round(2.5 * need_mb / shipped.pressure_thresholds.high)
    profile = {"provider": "cpu", "vram_budget_mb": budget_mb, "max_concurrent_slots": 2, "context_length": 4096}
    (folder / "profiles.yaml").write_text(
        yaml.safe_dump({"default_profile": "two", "profiles": {"two": {"description": "room for two", **profile}}})
    )
    source, out = folder / "four.jsonl", folder / "four-out.jsonl"
    write_rows(source, rows, 16, names)
    environment = os.environ | {"COE_MODELS_DIR": str(models)}
    command = [*COE, "batch", str(source), "-o", str(out), "--profiles", str(folder / "profiles.yaml"), "-p", "two"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    found = re.search(r"(\d+) loads?\b", result.stderr)
    if result.returncode or found is None:
        raise RuntimeError(result.stderr)
    answers = [json.loads(line)["model"] for line in out.read_text(encoding="utf-8").splitlines()]
    return int(found[1]), len({name for name in names if name in answers})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=72)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "speed").mkdir()
        sides = Throughput(folder / "speed", given.rows, given.tokens)
        pair = alternate(sides.coe, sides.bare, given.rounds)
        loaded, fewest = loads(folder, given.rows)
    speed_row = pair.cells(f"batch of {given.rows} rows of {given.tokens} tokens", "tokens/s", "≥ 0.95")
    ratio = f"{loaded / fewest:.2f}"
    loads_row = [f"loads, {COPIES} models in a pool for 2", loaded, f"{fewest} at least", ratio, "–", "≤ 1.10"]
    print_table(COLUMNS, [speed_row, loads_row])
    for (processes, threads), rate in sides.tried.items():
        print(f"\nbare, {processes} process(es) of {threads} thread(s): {rate:.1f} tokens/s", end="")
    print(f"\nbare side of the table: {sides.processes} × {sides.threads}")


if __name__ == "__main__":
    main()
