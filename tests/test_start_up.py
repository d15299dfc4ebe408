"""What the command line imports: nothing heavy, and the answer is made in another process."""

from __future__ import annotations

import sys

import pytest
from conftest import MODEL, Coe

HEAVY = {
    "onnxruntime",
    "onnxruntime_genai",
    "onnx",
    "torch",
    "transformers",
    "sentence_transformers",
    "numpy",
    "huggingface_hub",
}


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("--version",),
        ("models", "list"),
        ("models", "pull", MODEL),
        ("ask", "--help"),
        ("ask", "-m", MODEL, "--max-tokens", "1", "Hi"),
        ("ask", "-e", "no_such_expert", "Hi"),
        ("bench", MODEL, "--prompt-tokens", "16", "--gen-tokens", "2", "-r", "1", "--warm-up", "0"),
    ],
)
def test_no_command_imports_what_only_workers_need(coe: Coe, arguments: tuple[str, ...]) -> None:
    modules = _imported(coe, *arguments)
    assert "coe_cli" in modules, "the report is there"
    assert not HEAVY & {module.partition(".")[0] for module in modules}


def test_a_question_in_a_pipe_does_not_import_what_sets_a_machine_up(bare_coe: Coe) -> None:
    modules = _imported(bare_coe, "ask", "-e", "no_such_expert", "Hi")
    assert "coe_cli.use_cases.asking" in modules
    assert not {"coe_cli.runtime.planning.setup_plan", "coe_cli.runtime.store.install"} & modules


def _imported(coe: Coe, *arguments: str) -> set[str]:
    """-X importtime writes a line for each module of this process; the worker is not started with it."""
    result = coe.run(command=[sys.executable, "-X", "importtime", "-m", "coe_cli", *arguments])
    lines = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    return {line.rsplit("|", 1)[1].strip() for line in lines}
