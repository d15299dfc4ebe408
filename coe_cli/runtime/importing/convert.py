"""Writes a source in OGA layout, in a child process whose memory goes with it and that can be killed.

The child is ``python -m coe_cli.runtime.importing.convert``; its stdout carries one JSON object a line, ``{"stage", "fraction"}`` or a
last ``{"error": {"code", "message", "hint"}}``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from coe_cli.core.importing.encodings import Precision, rules_for
from coe_cli.core.importing.genai_config import genai_config
from coe_cli.core.importing.record import RECORD, new_record
from coe_cli.core.models.model_spec import GENAI_CONFIG
from coe_cli.core.providers import spec_of
from coe_cli.runtime.child import Message, run_child, serve_as_child
from coe_cli.runtime.importing.source import inspect
from coe_cli.runtime.model_folder.model_ends import model_ends
from coe_cli.runtime.progress import OnProgress, Step

Progress = Callable[[str, float], None]
"""Called with the stage (``tokenizer``, ``weights``) and the fraction of the whole that is done."""

_TOKENIZER_SHARE = 0.1


def convert(
    source: Path, output: Path, *, provider: str, precision: Precision, on_progress: OnProgress, paged: bool = False
) -> None:
    """Write ``source`` into the folder ``output`` in a child process without a network.

    ``output`` should be a fresh temporary folder: what lies there after a failure is not a model. The child is ended when
    the caller is interrupted.

    Raises:
        UsageError: the source cannot be imported, or there is no such recipe.
        ModelDamaged: the source cannot be read.
        OutOfMemory: the child was ended for its memory, or could not get any.
    """
    rules_for(provider, precision, paged=paged)
    run_child(
        "coe_cli.runtime.importing.convert",
        [str(source), str(output), provider, precision, *(["paged"] if paged else [])],
        lambda message: on_progress(Step(f"Converting: {message['stage']}", float(message["fraction"]), 1.0)),
        task="conversion",
    )


def build(
    source: Path, output: Path, provider: str, precision: Precision, on_progress: Progress, *, paged: bool = False
) -> None:
    """Convert in this process: what the child does."""
    from coe_cli.runtime.importing.tokenizer_files import write_tokenizer
    from coe_cli.runtime.importing.write_decoder import GRAPH, write_decoder

    rules = rules_for(provider, precision, paged=paged)
    found = inspect(source)
    output.mkdir(parents=True, exist_ok=True)
    on_progress("tokenizer", 0.0)
    special = write_tokenizer(found, output)
    config = genai_config(found.decoder, spec_of(provider), special, GRAPH, rules)
    ends = model_ends(output, config["model"]).ids
    config["model"]["eos_token_id"] = ends[0] if len(ends) == 1 else list(ends)
    (output / GENAI_CONFIG).write_text(json.dumps(config, indent=4), encoding="utf-8")

    def written(fraction: float) -> None:
        on_progress("weights", round(_TOKENIZER_SHARE + (1 - _TOKENIZER_SHARE) * fraction, 4))

    written(0.0)
    formats = write_decoder(found.decoder, found.weights(), output, rules, precision, written)
    record = new_record(found.path.name, found.architecture, provider, precision, formats)
    (output / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str]) -> int:
    """The child: convert SOURCE to the folder OUTPUT for PROVIDER in PRECISION and report on stdout; gives the exit code."""
    source, output, provider, precision, *options = arguments

    def work(send: Callable[[Message], None]) -> None:
        def report(stage: str, part: float) -> None:
            send({"stage": stage, "fraction": part})

        kind = msgspec.convert(precision, Precision)
        build(Path(source), Path(output), provider, kind, report, paged="paged" in options)

    return serve_as_child(work, "conversion")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
