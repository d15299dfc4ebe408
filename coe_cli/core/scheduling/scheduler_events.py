"""What the scheduler is told (events) and what it answers (decisions): plain values, no behaviour."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

RequestId: TypeAlias = int | str

# --- events ---------------------------------------------------------------------------------------------------------


class Request(Struct, frozen=True, gc=False):
    """Somebody asks ``model`` for an answer. ``priority``: larger is more urgent. ``retries`` after a
    worker's death.

    ``guided``: a grammar forces the answer. It may itself be what takes the memory, so a critical eviction ends the request.
    """

    request_id: RequestId
    model: str
    priority: int = 0
    guided: bool = False
    retries: int = 1


class Expected(Struct, frozen=True, gc=False):
    """A request for ``model`` will come in a moment: load it meanwhile, if nothing has to make room for it."""

    model: str


class Loaded(Struct, frozen=True, gc=False):
    """The model is loaded. ``used_mb``: memory in use in the pool, measured now; None when it cannot be measured."""

    model: str
    used_mb: float | None = None


class LoadFailed(Struct, frozen=True, gc=False):
    """The model did not load and its process is gone. ``code`` is an error code of ``coe_cli.errors``.

    ``killed``: somebody else ended the process, which says nothing about the model. ``hint`` says what to do about it.
    """

    model: str
    code: str = "out_of_memory"
    message: str = ""
    used_mb: float | None = None
    killed: bool = False
    hint: str = ""


class Tokens(Struct, frozen=True, gc=False):
    """A part of the answer was delivered to the user: from now on the request cannot be retried unseen."""

    request_id: RequestId
    count: int = 1


class Done(Struct, frozen=True, gc=False):
    """The worker has finished with the request and its slot, whatever the outcome."""

    request_id: RequestId


class Cancelled(Struct, frozen=True, gc=False):
    """The user does not want the answer any more."""

    request_id: RequestId


class WorkerDied(Struct, frozen=True, gc=False):
    """The model's process ended by itself, lost its device or was ended by the watchdog; ``killed`` as in ``LoadFailed``."""

    model: str
    code: str = "device_lost"
    message: str = ""
    used_mb: float | None = None
    killed: bool = False


class Evicted(Struct, frozen=True, gc=False):
    """An ``Evict`` was carried out: the process is gone. ``reclaimed_mb``: how far memory in use fell meanwhile."""

    model: str
    reclaimed_mb: float | None = None
    used_mb: float | None = None


class MeasuredUsage(Struct, frozen=True, gc=False):
    """Memory in use on the device beyond the fixed part, other programs included."""

    used_mb: float


class Tick(Struct, frozen=True, gc=False):
    """Time has passed; send one at ``Scheduler.next_wakeup_s()``."""


class Unload(Struct, frozen=True, gc=False):
    """The user wants the model out: it goes as soon as it is idle and nobody waits for it, however young."""

    model: str


class Drain(Struct, frozen=True, gc=False):
    """Admit nothing more; what is queued or running is still served."""


Event: TypeAlias = (
    Request
    | Expected
    | Loaded
    | LoadFailed
    | Tokens
    | Done
    | Cancelled
    | WorkerDied
    | Evicted
    | MeasuredUsage
    | Tick
    | Unload
    | Drain
)

# --- decisions ------------------------------------------------------------------------------------------------------

WaitReason = Literal["loading", "evicting", "slots", "pressure", "memory", "min_resident", "queue"]
EvictReason = Literal["room", "critical", "idle", "preload", "out_of_memory", "asked"]
NoticeCode = Literal["pressure", "shortfall", "reclaimed", "load_retry"]


class Load(Struct, frozen=True, gc=False):
    """Start a worker for ``model``; answer with ``Loaded`` or ``LoadFailed``."""

    model: str


class Preload(Struct, frozen=True, gc=False):
    """As ``Load``, for a model that nobody has asked for yet."""

    model: str


class Start(Struct, frozen=True, gc=False):
    """Generate. ``attempt`` counts from 1; answer with ``Tokens`` and one ``Done``."""

    request_id: RequestId
    model: str
    attempt: int = 1


class Wait(Struct, frozen=True, gc=False):
    """The request is queued; ``ahead`` counts the requests that are waiting already."""

    request_id: RequestId
    model: str
    reason: WaitReason
    ahead: int


class Evict(Struct, frozen=True, gc=False):
    """End the model's process, also in mid-load or mid-answer; answer with ``Evicted``."""

    model: str
    reason: EvictReason


class Retry(Struct, frozen=True, gc=False):
    """The running request was taken off its slot and will start again from the beginning, not before ``at_s``."""

    request_id: RequestId
    at_s: float
    reason: str


class Refuse(Struct, frozen=True, gc=False):
    """The request has ended without a (whole) answer. ``retry_after_s`` is None when trying again is useless."""

    request_id: RequestId
    code: str
    message: str
    hint: str = ""
    retry_after_s: float | None = None


class Stop(Struct, frozen=True, gc=False):
    """Break a cancelled generation off; its slot stays taken until the worker's ``Done``."""

    request_id: RequestId
    model: str


class Notice(Struct, frozen=True, gc=False):
    """Something to tell the user; nothing to carry out."""

    code: NoticeCode
    message: str


Decision: TypeAlias = Load | Preload | Start | Wait | Evict | Retry | Refuse | Stop | Notice
