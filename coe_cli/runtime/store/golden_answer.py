"""The golden answer: a short greedy answer of each model, recorded once per provider and compared ever after.

A driver, a provider or a damaged file that makes a model compute something else shows here before it shows in answers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

from coe_cli.core.models.model_spec import ModelSpec
from coe_cli.errors import CoeError, OutOfMemory
from coe_cli.replacing import remove
from coe_cli.runtime.atomic_write import atomic_write
from coe_cli.runtime.prompts.prompt_messages import RAW_TEMPLATE, Prepare
from coe_cli.runtime.prompts.prompts import own
from coe_cli.runtime.regular_file import read_text
from coe_cli.runtime.store.integrity import sha256_of
from coe_cli.runtime.worker import protocol
from coe_cli.runtime.worker.single_worker import SingleWorker

PROMPTS = ("The capital of France is", "def add(a, b):\n    return")
_TOKENS, _CONTEXT = 16, 512
_MAX_BYTES = 16 * 2**20


class Golden(Struct, frozen=True):
    """The texts, one a token, that a model continues each of ``PROMPTS`` with."""

    provider: str
    oga_version: str
    graph_sha256: str
    texts: list[list[str]] = field(name="pieces")


def run_golden(spec: ModelSpec, *, timeout_s: float = 600.0) -> Golden:
    """Load ``spec`` in a worker of its own and continue each of ``PROMPTS`` by 16 tokens, greedily.

    Raises:
        ModelDamaged, OutOfMemory, DeviceLost, TimedOut: as the worker says, or by how it ends.
    """
    assert spec.folder is not None
    version, texts = continue_prompts(spec, PROMPTS, max_tokens=_TOKENS, timeout_s=timeout_s)
    return Golden(spec.provider, version, sha256_of(spec.folder / spec.graph), texts)


def recorded(state_dir: Path, name: str, provider: str) -> Golden | None:
    """The golden that was recorded for a model on a provider, or None."""
    try:
        entry = _read(state_dir, name).get(provider)
        return msgspec.convert(entry, Golden) if entry is not None else None
    except msgspec.ValidationError:
        return None


def record(state_dir: Path, name: str, golden: Golden) -> None:
    """Keep ``golden`` for the next time.

    Raises:
        CoeError: the state folder cannot be written.
    """
    path = _path(state_dir, name)
    content = {**_read(state_dir, name), golden.provider: msgspec.to_builtins(golden)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as scratch:
            scratch.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    except OSError as error:
        raise CoeError(
            f"{path} cannot be written: {error.strerror or error}", "Make it writable, or set COE_STATE_DIR."
        ) from error


def forget(state_dir: Path, name: str) -> None:
    """Drop what was recorded for a model."""
    remove(_path(state_dir, name))


def first_difference(expected: Golden, actual: Golden) -> str | None:
    """Where two runs part, in words, or None where they agree."""
    for prompt, wanted, got in zip(PROMPTS, expected.texts, actual.texts, strict=True):
        for place, (one, other) in enumerate(zip([*wanted, None], [*got, None], strict=False)):
            if one != other:
                return f"after {prompt!r}, token {place + 1} is {other!r} instead of {one!r}"
    return None


def _read(state_dir: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads(read_text(_path(state_dir, name), _MAX_BYTES))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _path(state_dir: Path, name: str) -> Path:
    return state_dir / "golden_answers" / f"{name}.json"


def continue_prompts(
    spec: ModelSpec, prompts: Sequence[str], *, max_tokens: int, timeout_s: float = 600.0
) -> tuple[str, list[list[str]]]:
    """OGA's version, and for each prompt the texts, one a token, that the model continues it with.

    Raises:
        ModelDamaged, OutOfMemory, DeviceLost, TimedOut: as the worker says, or by how it ends.
    """
    try:
        with SingleWorker(timeout_s) as worker:
            version = worker.hello().oga_version
            context = min(_CONTEXT, spec.context_length)
            worker.load(spec, context_length=context)
            texts = []
            for number, prompt in enumerate(prompts):
                worker.generate(number, _ids(spec, prompt, context), context, max_tokens)
                texts.append(_texts(worker))
            return version, texts
    except OutOfMemory as error:
        from coe_cli.runtime.server.running_college import out_of_memory_hint

        raise OutOfMemory(error.message, out_of_memory_hint(error.hint)) from error


def _ids(spec: ModelSpec, prompt: str, context: int) -> list[int]:
    messages = [protocol.ChatMessage("user", prompt)]
    return own().prepare(Prepare(spec.name, str(spec.folder), messages, context, RAW_TEMPLATE)).ids


def _texts(worker: SingleWorker) -> list[str]:
    texts: list[str] = []
    while not isinstance(message := worker.receive(), protocol.Done):
        if isinstance(message, protocol.Token):
            texts.append(message.text)
    return texts
