"""What a running college shows of itself: the content of `coe ps`. Memory in MB, times in seconds."""

from __future__ import annotations

from msgspec import Struct

STATUS_SCHEMA_VERSION = 1


class SlotLine(Struct, frozen=True):
    """One answer that is being written: who writes it, the tokens of its prompt, those of them from the cache, and the answer's."""

    expert: str | None
    prompt_tokens: int
    reused_tokens: int
    completion_tokens: int


class ModelLine(Struct, frozen=True):
    """One model that is loaded, on its way in or out, or waited for. None where nothing was measured.

    ``kv_reserved_mb`` is the part of ``reserved_mb`` that is for the slots: KV caches, and activations with them.
    ``held_mb``: what it keeps until its process ends, with each slot that was opened since its load.
    ``written_tokens`` counts since the college began; ``waits_for`` says what its waiting requests wait for, else it is empty.
    """

    name: str
    pid: int | None
    state: str
    running: int
    max_slots: int
    waiting: int
    context_length: int | None
    reserved_mb: int
    measured_mb: float | None
    idle_s: float | None
    kv_reserved_mb: int = 0
    held_mb: int = 0
    written_tokens: int = 0
    waits_for: str = ""
    slots: list[SlotLine] = []


class PressureLine(Struct, frozen=True):
    """Usage over the pool, and the level that follows from it."""

    ratio: float
    level: str


class CollegeStatus(Struct, frozen=True):
    """One college at one moment; all None and empty when none runs.

    ``elsewhere_mb`` and ``elsewhere_by`` are promised keys of the JSON: 0 and empty, since nobody else uses the pool.
    """

    schema_version: int = STATUS_SCHEMA_VERSION
    pid: int | None = None
    url: str | None = None
    profile: str | None = None
    uptime_s: float | None = None
    models: list[ModelLine] = []
    pressure: PressureLine | None = None
    usage_mb: float | None = None
    pool_mb: float | None = None
    queue_length: int = 0
    notices: list[str] = []
    device: str | None = None
    elsewhere_mb: float = 0.0
    elsewhere_by: str = ""
