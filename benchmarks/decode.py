"""Tokens a second of `coe ask` in a pipe beside a bare ONNX Runtime GenAI loop in one process, alternating.

Usage: python benchmarks/decode.py [ROUNDS]   (the embedded model must be there: coe models pull smollm2-135m)
"""

from __future__ import annotations

import json
import subprocess
import sys

from pairs import COE, COLUMNS, MODEL, ROOT, alternate, print_table

from coe_cli.runtime.folders import folders

PROMPT = "Tell a long story about a lighthouse keeper, his daughter, a storm and a ship."
MAX_TOKENS = 256


def coe_rate() -> float:
    """tokens/s as the worker measures it while coe streams them into a pipe."""
    command = [
        *COE,
        "ask",
        "--no-serve",
        "--no-log",
        "-m",
        MODEL,
        "-s",
        "",
        "--temperature",
        "0",
        "--max-tokens",
        str(MAX_TOKENS),
        "--format",
    ]
    result = subprocess.run([*command, "jsonl", PROMPT], capture_output=True, text=True, check=True, cwd=ROOT)
    return float(json.loads(result.stdout.splitlines()[-1])["timing"]["tokens_per_s"])


def bare_rate() -> float:
    """tokens/s of the bare loop, which writes each token to its own pipe."""
    command = [sys.executable, str(ROOT / "benchmarks" / "bare_oga.py"), str(folders().models / MODEL), PROMPT]
    result = subprocess.run([*command, str(MAX_TOKENS)], capture_output=True, text=True, check=True, cwd=ROOT)
    return float(json.loads(result.stderr.splitlines()[-1])["tokens_per_s"])


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    print_table(COLUMNS, [alternate(coe_rate, bare_rate, rounds).cells("`ask`, decode", "tokens/s", "≥ 0.97")])


if __name__ == "__main__":
    main()
