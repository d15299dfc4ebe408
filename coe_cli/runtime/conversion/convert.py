"""Converts a GGUF file or a Hugging Face folder to OGA layout, in a child process whose memory goes with it.

The child is ``python -m coe_cli.runtime.conversion.convert``; its stdout carries one JSON object a line, ``{"stage", "fraction"}`` or a
last ``{"error": {"code", "message", "hint"}}``, and whatever its libraries print goes to stderr.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from coe_cli.core.profile import Provider
from coe_cli.core.providers import host, names, spec_of
from coe_cli.core.recipe import Precision, Recipe, describe, recipe_for
from coe_cli.runtime.child import Message, run_child, serve_as_child
from coe_cli.runtime.conversion.checkpoint import copy_side_files, find_source, mend_tokenizer, write_checkpoint
from coe_cli.runtime.conversion.fit_graph import write_fitted
from coe_cli.runtime.conversion.quantize_graph import quantize_graph
from coe_cli.runtime.progress import OnProgress, Step

RECORD = "coe_conversion.json"
"""Name of the file beside a converted model that records its recipe and source."""

Progress = Callable[[str, float], None]
"""Called with the stage (``read``, ``build``, ``quantize``, ``finish``) and the fraction of the whole that is done."""

_STARTS = {"read": 0.0, "build": 0.35, "quantize": 0.7, "finish": 0.98}


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
    arguments = ["--source", str(source), "--output", str(output), "--provider", provider, "--precision", precision]
    run_child(
        "coe_cli.runtime.conversion.convert",
        arguments,
        lambda message: on_progress(Step(f"Converting: {message['stage']}", float(message["fraction"]), 1.0)),
        task="conversion",
    )


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
        write_fitted(output / "model.onnx", output / "model.onnx", spec_of(recipe.provider).graph)
        mend_tokenizer(output)
    record = {"source": found.name, "recipe": describe(recipe)}
    (output / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    on_progress("finish", 1.0)


def _run_builder(checkpoint: Path, target: Path, cache: Path, recipe: Recipe) -> None:
    import runpy

    options = [f"{key}={value}" for key, value in recipe.builder_options.items()]
    arguments = ["-i", checkpoint, "-o", target, "-c", cache, "-p", recipe.builder_precision, "-e", recipe.provider]
    # the module's own command line: the functions behind it take options unchecked, and differently in each version
    own, sys.argv = sys.argv, ["builder", *map(str, arguments), "--extra_options", *options]
    try:
        runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__", alter_sys=True)
    finally:
        sys.argv = own


def main(arguments: list[str]) -> int:
    """The child: convert as told and report on stdout; returns the exit code."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m coe_cli.runtime.conversion.convert")
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--provider", choices=names(), default=host().name)
    parser.add_argument("--precision", choices=["int4", "int8", "fp16"], default="int4")
    options = parser.parse_args(arguments)

    def work(send: Callable[[Message], None]) -> None:
        recipe = recipe_for(options.provider, options.precision)
        build(options.source, options.output, recipe, lambda stage, part: send({"stage": stage, "fraction": part}))

    return serve_as_child(work, "conversion")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
