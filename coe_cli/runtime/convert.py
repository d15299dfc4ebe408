"""Converts a GGUF file or a Hugging Face folder to OGA layout, in a child process whose memory goes with it.

The child is ``python -m coe_cli.runtime.convert``; its stdout carries one JSON object a line, ``{"stage", "fraction"}`` or a
last ``{"error": {"code", "message", "hint"}}``, and whatever its libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from coe_cli.core.profile import Provider
from coe_cli.core.recipe import Precision, Recipe, describe, recipe_for
from coe_cli.errors import CoeError, OutOfMemory, UsageError, from_code
from coe_cli.runtime.checkpoint import copy_side_files, find_source, mend_tokenizer, write_checkpoint
from coe_cli.runtime.progress import OnProgress, Step
from coe_cli.runtime.quantize_graph import quantize_graph

RECORD = "coe_conversion.json"
"""Name of the file beside a converted model that records its recipe and source."""

Progress = Callable[[str, float], None]
"""Called with the stage (``read``, ``build``, ``quantize``, ``finish``) and the fraction of the whole that is done."""

_STARTS = {"read": 0.0, "build": 0.35, "quantize": 0.7, "finish": 0.98}
_KILLED = (-9, 137)
_NO_MEMORY_HINT = "Close other programs, or fetch a model that is converted already."


def convert(source: Path, output: Path, *, provider: Provider, precision: Precision, on_progress: OnProgress) -> None:
    """Convert ``source`` into the folder ``output`` with the recipe in force, in a child process without a network.

    ``output`` should be a fresh temporary folder: what lies there after a failure is not a model. The child is ended when
    the caller is interrupted.

    Raises:
        UsageError: the source is not there, its architecture is not supported, or there is no such recipe.
        ModelDamaged: the source cannot be read.
        OutOfMemory: the child was ended for its memory, or could not get any.
        CoeError: the builder failed in another way; the message holds its last words.
    """
    recipe_for(provider, precision)
    find_source(source)
    command = [sys.executable, "-m", "coe_cli.runtime.convert", "--source", str(source), "--output", str(output)]
    command += ["--provider", provider, "--precision", precision]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True, env=_environment()
        )
        try:
            error = _follow(child, on_progress)
            code = child.wait()
        except BaseException:
            child.kill()
            child.wait()
            raise
        if error is not None:
            raise error
        if code in _KILLED:
            raise OutOfMemory("the conversion was ended, most likely for want of memory", _NO_MEMORY_HINT)
        if code != 0:
            log.seek(0)
            words = [line.strip() for line in log if line.strip()]
            raise CoeError(
                f"the conversion failed: {words[-1] if words else f'exit code {code}'}",
                "Run it again with COE_DEBUG=1 to see all that was printed.",
            )


def _follow(child: subprocess.Popen[str], on_progress: OnProgress) -> CoeError | None:
    assert child.stdout is not None
    for line in child.stdout:
        message = json.loads(line)
        if "error" in message:
            return from_code(**message["error"])
        stage = str(message["stage"])
        on_progress(Step(f"Converting: {stage}", float(message["fraction"]), 1.0))
    return None


def _environment() -> dict[str, str]:
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    quiet = {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONIOENCODING": "utf-8",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return {**os.environ, **quiet}


def build(source: Path, output: Path, recipe: Recipe, on_progress: Progress) -> None:
    """Convert in this process: what the child does."""
    output.mkdir(parents=True, exist_ok=True)

    def at(stage: str, fraction: float = 0.0) -> None:
        starts = [*_STARTS.values(), 1.0]
        index = list(_STARTS).index(stage)
        on_progress(stage, round(starts[index] + fraction * (starts[index + 1] - starts[index]), 4))

    found = find_source(source)
    with tempfile.TemporaryDirectory(dir=output, prefix=".build-") as scratch:
        work = Path(scratch)
        at("read")
        checkpoint = write_checkpoint(found, work / "hf")
        at("build")
        built = work / "oga" if recipe.weights else output
        _run_builder(checkpoint, built, work / "cache", recipe)
        if recipe.weights:
            at("quantize")
            copy_side_files(built, output)
            quantize_graph(
                built / "model.onnx", output / "model.onnx", recipe, on_progress=lambda part: at("quantize", part)
            )
        at("finish")
        mend_tokenizer(output)
    record = {"source": found.name, "recipe": describe(recipe)}
    (output / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    on_progress("finish", 1.0)


def _run_builder(checkpoint: Path, target: Path, cache: Path, recipe: Recipe) -> None:
    import runpy

    options = [f"{key}={value}" for key, value in recipe.builder_options.items()]
    arguments = ["-i", checkpoint, "-o", target, "-c", cache, "-p", recipe.builder_precision, "-e", recipe.provider]
    # the module's own command line: the functions behind it take options unchecked, and differently in each version
    sys.argv = ["builder", *map(str, arguments), "--extra_options", *options]
    runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__", alter_sys=True)


def main(arguments: list[str], channel: TextIO) -> int:
    """The child: convert as told, write progress or an error to ``channel``; returns the exit code."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m coe_cli.runtime.convert")
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--provider", choices=["cpu", "dml", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["int4", "int8", "fp16"], default="int4")
    options = parser.parse_args(arguments)

    def say(message: dict[str, Any]) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    try:
        recipe = recipe_for(options.provider, options.precision)
        build(options.source, options.output, recipe, lambda stage, part: say({"stage": stage, "fraction": part}))
        return 0
    except CoeError as error:
        failure = error
    except MemoryError:
        failure = OutOfMemory("the conversion ran out of memory", _NO_MEMORY_HINT)
    except NotImplementedError as refused:
        failure = UsageError(f"the model builder refuses this model: {refused}", "Name another source.")
    say(failure.as_dict())
    return int(failure.exit_code)


if __name__ == "__main__":
    _channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.exit(main(sys.argv[1:], _channel))
