"""The CoeError family and the exit codes they end in: one place decides what a failure means to the shell."""

from __future__ import annotations

import errno
from enum import IntEnum

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The disk, a quota, or the file system's largest file is reached (FAT32: 4 GB)."""


class ExitCode(IntEnum):
    """Exit codes of every command: a contract with scripts."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    PROFILE_INVALID = 3
    MODEL_MISSING = 4
    DOES_NOT_FIT = 5
    OUT_OF_MEMORY = 6
    DEVICE_LOST = 7
    TIMED_OUT = 8
    INTERRUPTED = 130


class CoeError(Exception):
    """A failure that the user can act on.

    ``message`` says what is wrong, ``hint`` what to do next; both are single sentences without a trailing newline.
    ``param`` is the field of the request that it is about, where one is known.
    """

    exit_code: ExitCode = ExitCode.UNEXPECTED
    code: str = "unexpected"
    param: str | None = None

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def as_dict(self) -> dict[str, dict[str, str]]:
        """The error as ``{"error": {"code", "message", "hint"}}``."""
        return {"error": {"code": self.code, "message": self.message, "hint": self.hint}}


class UsageError(CoeError):
    """The command was asked for something that does not exist or makes no sense."""

    exit_code = ExitCode.USAGE
    code = "usage"


class PromptTooLong(UsageError):
    """The prompt does not fit the context that is available: ``tokens`` in ``context_length``, where both are known."""

    code = "prompt_too_long"

    def __init__(
        self, message: str, hint: str = "", tokens: int | None = None, context_length: int | None = None
    ) -> None:
        super().__init__(message, hint)
        self.tokens, self.context_length = tokens, context_length


class UnknownToken(UsageError):
    """A prompt of token ids has one that the model has not."""

    code = "unknown_token"


class NothingToFill(UsageError):
    """The model's tokenizer has no tokens that stand around a gap."""

    code = "nothing_to_fill"


class UnusableGrammar(UsageError):
    """No grammar can be made of a request's JSON schema, pattern or grammar."""

    code = "unusable_grammar"


class UnsupportedArchitecture(UsageError):
    """A model of a kind, or with something, that cannot be imported."""

    code = "unsupported_architecture"


class PickledWeights(UsageError):
    """Loading such weights would run code that came with them."""

    code = "pickled_weights"


class ProfileInvalid(CoeError):
    """A profile or catalog file is missing, unreadable or breaks its schema."""

    exit_code = ExitCode.PROFILE_INVALID
    code = "profile_invalid"


class ModelMissing(CoeError):
    """A model is unknown, or known but not on disk."""

    exit_code = ExitCode.MODEL_MISSING
    code = "model_missing"


class ModelDamaged(ModelMissing):
    """A model's folder is incomplete, truncated or inconsistent."""

    code = "model_damaged"


def first_line(error: BaseException) -> str:
    """What a library said, or its error's name where that is nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def damaged(name: str, problem: str) -> ModelDamaged:
    """``problem`` of the model called ``name``, and how to have it again."""
    return ModelDamaged(f"model `{name}` is damaged: {problem}", f"Fetch it again: coe models pull {name} --force")


class DoesNotFit(CoeError):
    """The plan does not fit the memory budget."""

    exit_code = ExitCode.DOES_NOT_FIT
    code = "does_not_fit"


class DiskFull(DoesNotFit):
    """The disk has no room for what is to be written."""

    code = "disk_full"


class OutOfMemory(CoeError):
    """The device or the machine ran out of memory."""

    exit_code = ExitCode.OUT_OF_MEMORY
    code = "out_of_memory"


class DeviceLost(CoeError):
    """The device was removed or hung, the worker died, or the provider is not available."""

    exit_code = ExitCode.DEVICE_LOST
    code = "device_lost"


class Busy(CoeError):
    """The college has no room for the request now; ``retry_after_s`` says when to try again."""

    exit_code = ExitCode.TIMED_OUT
    code = "queue_full"

    def __init__(self, message: str, hint: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message, hint)
        self.retry_after_s = retry_after_s


class Draining(Busy):
    """The college finishes what it has and takes nothing more."""

    code = "draining"


class PromptsFull(Busy):
    """Too many prompts are being made ready."""

    code = "prompts_full"


class Interrupted(CoeError):
    """The user pressed Ctrl-C and something is worth saying about it."""

    exit_code = ExitCode.INTERRUPTED
    code = "interrupted"


class TimedOut(CoeError):
    """Nothing happened for longer than allowed."""

    exit_code = ExitCode.TIMED_OUT
    code = "timed_out"


ERROR_TYPES: dict[str, type[CoeError]] = {
    kind.code: kind for kind in list(globals().values()) if isinstance(kind, type) and issubclass(kind, CoeError)
}
"""Code → each kind of this file, as it crosses process boundaries."""


def explained(error: Exception) -> CoeError:
    """``error`` as a ``CoeError``: itself, or for whatever nobody foresaw one that names it."""
    if isinstance(error, CoeError):
        return error
    if isinstance(error, OSError) and error.strerror:
        full = error.errno in DISK_FULL  # which has a name unless it is a stream's
        what = error.filename or ("the output" if full else "what was to be written or read")
        hint = "Make room there, or choose another place." if full else "Choose another place."
        return CoeError(f"{what} cannot be used: {error.strerror}", hint)
    if isinstance(error, MemoryError):
        return OutOfMemory("this computer has no memory left", "Close other programs, and try again.")
    said = f": {error}" if str(error) else ""
    return CoeError(f"{type(error).__name__}{said}", "Set COE_DEBUG=1 to see where it comes from.")


def from_code(code: str, message: str, hint: str = "") -> CoeError:
    """Rebuild an error that crossed a process boundary; an unknown code becomes a plain ``CoeError``."""
    return ERROR_TYPES.get(code, CoeError)(message, hint)
