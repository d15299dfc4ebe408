"""Whether questions and answers are kept, where, and how they are kept and continued."""

from __future__ import annotations

import os
from pathlib import Path

from coe_cli.core.answers.conversations import Conversation, Exchange
from coe_cli.core.hardware.profile import HistorySettings
from coe_cli.errors import CoeError, UsageError
from coe_cli.replacing import remove
from coe_cli.runtime.atomic_write import make_private
from coe_cli.runtime.conversation.history_file import History
from coe_cli.runtime.folders import folders, may_be_there


def history_path() -> Path:
    return folders().state / "history.db"


def open_history(settings: HistorySettings) -> History:
    """This user's history.

    Raises:
        CoeError: the file cannot be used.
    """
    return History(history_path(), max_conversations=settings.max_conversations)


def logging_wanted(settings: HistorySettings, *, no_log: bool = False) -> bool:
    """Whether questions and answers are kept: not with --no-log, COE_NO_LOG, `coe logs off` or the profile's key."""
    forbidden = os.environ.get("COE_NO_LOG", "").lower() not in ("", "0", "false", "no")
    return settings.enabled and not no_log and not forbidden and not _is_off()


def switch_logging(on: bool) -> None:
    """`coe logs on` and `coe logs off`: holds until the other is said.

    Raises:
        CoeError: the state folder cannot be written.
    """
    marker = _off_marker()
    try:
        if on:
            remove(marker)
        else:
            make_private(marker)
    except OSError as error:
        raise CoeError(f"{marker} cannot be written: {error.strerror}", "Check the folder and its owner.") from None


def record(
    exchange: Exchange, settings: HistorySettings, *, conversation_id: int | None = None, no_log: bool = False
) -> tuple[int | None, str | None]:
    """Keep an exchange if that is wanted: (the conversation's id or None, a warning or None).

    A history that cannot be written must not cost the user an answer, so this raises nothing.
    """
    if not logging_wanted(settings, no_log=no_log):
        return None, None
    try:
        with open_history(settings) as history:
            return history.record(exchange, conversation_id), None
    except CoeError as error:
        return None, f"{error.message}; this answer is not kept. {error.hint}"


def last_conversation(settings: HistorySettings) -> Conversation:
    """What `coe ask -c` and `coe chat -c` continue.

    Raises:
        UsageError: nothing has been kept.
        CoeError: the file cannot be used.
    """
    found = None
    if may_be_there(history_path()):
        with open_history(settings) as history:
            found = history.last_conversation()
    if found is None:
        raise UsageError("there is no conversation to continue", "Ask without -c first; `coe logs on` if it is off.")
    return found


def _is_off() -> bool:
    try:
        return _off_marker().exists()
    except OSError:  # a folder that this user may not look into, where nothing can be kept; keeping says so
        return False


def _off_marker() -> Path:
    return folders().state / "history.off"
