"""Text to vectors: an exported sentence-transformers model on onnxruntime, with neither PyTorch nor a network."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from coe_cli.core.providers import host, on_host, spec_of
from coe_cli.errors import ModelDamaged, ModelMissing, first_line
from coe_cli.providers.settings import allowed_cores
from coe_cli.runtime.folders import Folders

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Vectors = npt.NDArray[np.float32]

EMBEDDER_FORMAT = 1
EMBEDDED = "all-MiniLM-L6-v2"
GPU_DEFAULT = "bge-m3"

_BATCH = 32
_CHARS_PER_TOKEN = 12


class EmbedderInfo(msgspec.Struct, frozen=True):
    """What an exported embedder is; ``embedder.json`` beside its graph.

    ``sha256`` is of what its vectors depend on, ``worst_cosine`` the least agreement with the original on the comparison
    texts, or 0 where it was not compared,
    ``resident_mb`` the memory that it takes: what a process gained by loading and running it on the CPU, or its files'
    size where the system had paged out more than that.
    """

    format: int
    name: str
    dimension: int
    max_tokens: int
    pad_id: int
    prompt: str
    sha256: str
    worst_cosine: float = 0.0
    resident_mb: float = 0.0


def embedder_folder(name: str, where: Folders) -> Path:
    """The folder in the cache that holds the export of the embedder called ``name``."""
    return where.cache / "embedders" / (re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "embedder")


def read_info(folder: Path) -> EmbedderInfo:
    """What the export in ``folder`` is.

    Raises:
        ModelMissing: there is no export.
        ModelDamaged: its description is unreadable, of another format, or the graph is gone.
    """
    path = folder / "embedder.json"
    try:
        info = msgspec.json.decode(path.read_bytes(), type=EmbedderInfo)
    except FileNotFoundError:
        raise ModelMissing(f"the embedder in {folder} is not prepared", "Prepare it: coe route --rebuild.") from None
    except (OSError, msgspec.MsgspecError) as error:
        raise ModelDamaged(f"{path} cannot be read: {error}", "Prepare it again: coe route --rebuild.") from None
    if info.format != EMBEDDER_FORMAT or not (folder / "model.onnx").is_file():
        raise ModelDamaged(f"the embedder in {folder} is not usable", "Prepare it again: coe route --rebuild.")
    return info


class Embedder:
    """An exported embedder, loaded.

    Raises:
        ModelMissing: the folder has no export.
        ModelDamaged: the graph or the tokenizer cannot be loaded.
    """

    def __init__(self, folder: Path, provider: str | None = None) -> None:
        self.info = read_info(folder)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from tokenizers import Tokenizer

        from coe_cli.runtime.onnxruntime_import import import_onnxruntime

        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = allowed_cores()
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # The batch's shape changes from call to call: DirectML wants no memory pattern then, and the CPU gains nothing.
        options.enable_mem_pattern = False
        available = onnxruntime.get_available_providers()
        wanted = dict.fromkeys([spec_of(provider or host().name).ort_name, host().ort_name])
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            self._session = _open_session(
                onnxruntime, folder / "model.onnx", options, [name for name in wanted if name in available]
            )
        except Exception as error:
            raise ModelDamaged(
                f"the embedder in {folder} cannot be loaded: {first_line(error)}",
                "Prepare it again: coe route --rebuild.",
            ) from error
        self._tokenizer.enable_truncation(self.info.max_tokens)
        self._tokenizer.no_padding()

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Vectors of length 1, float32 [len(texts), dimension], in the order of ``texts``.

        A text is cut at the model's own limit of tokens, and bounded in characters before it is tokenised.
        """
        import numpy as np

        encoded = self._tokenizer.encode_batch(self._bounded(texts))
        vectors = np.empty((len(encoded), self.info.dimension), dtype=np.float32)
        for batch in _batches([len(one.ids) for one in encoded]):
            ids = [encoded[position].ids for position in batch]
            width = max(1, len(ids[-1]))
            tokens = np.full((len(batch), width), self.info.pad_id, dtype=np.int64)
            mask = np.zeros((len(batch), width), dtype=np.int64)
            for row, sequence in enumerate(ids):
                tokens[row, : len(sequence)] = sequence
                mask[row, : len(sequence)] = 1
            (vectors[batch],) = self._session.run(None, {"input_ids": tokens, "attention_mask": mask})
        return vectors

    def token_counts(self, texts: Sequence[str]) -> list[tuple[int, bool]]:
        """Tokens of each text as ``embed`` sees it, the prompt included, and whether it was cut for that."""
        encoded = self._tokenizer.encode_batch(self._bounded(texts))
        return [
            (len(one.ids), bool(one.overflowing) or len(text) > self.max_chars)
            for one, text in zip(encoded, texts, strict=True)
        ]

    @property
    def max_chars(self) -> int:
        """Characters of a text that are looked at."""
        return self.info.max_tokens * _CHARS_PER_TOKEN

    def _bounded(self, texts: Sequence[str]) -> list[str]:
        bounded = (text[: self.max_chars].encode("utf-8", "replace").decode("utf-8") for text in texts)
        return [self.info.prompt + text for text in bounded]


def available_provider(wanted: str | None) -> str:
    """``wanted`` where this onnxruntime has it, else the host's own."""
    if wanted is None or on_host(wanted):
        return host().name
    from coe_cli.runtime.onnxruntime_import import import_onnxruntime

    there = import_onnxruntime().get_available_providers()
    return wanted if spec_of(wanted).ort_name in there else host().name


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Positions in batches of like length: at most a fifth of the shortest (and four tokens) is padding."""
    batches: list[list[int]] = []
    widest = 0
    for position in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not batches or len(batches[-1]) >= _BATCH or lengths[position] > widest:
            batches.append([])
            widest = lengths[position] * 6 // 5 + 4
        batches[-1].append(position)
    return batches


def _open_session(onnxruntime: Any, graph: Path, options: Any, providers: Sequence[str]) -> Any:
    """A session on the first of ``providers`` that can be had here; ONNX Runtime's own fallback writes to stdout.

    Raises:
        Exception: what ONNX Runtime says of the last of them.
    """
    for name in providers[:-1]:
        with contextlib.suppress(Exception):
            return onnxruntime.InferenceSession(str(graph), options, providers=[name], enable_fallback=0)
    return onnxruntime.InferenceSession(str(graph), options, providers=providers[-1:], enable_fallback=0)
