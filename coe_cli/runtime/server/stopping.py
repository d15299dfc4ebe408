"""The steps of `coe stop`; each returns the sentence that says what came of it."""

from __future__ import annotations

import contextlib
import time

from coe_cli.errors import DeviceLost, ModelMissing
from coe_cli.runtime.server.college_client import end_unresponsive, find, wait_until_gone

_END_S = 20.0
_SETTLE_S = 5.0
_BETWEEN_S = 2.0
"""What a college has that starts, or ends by itself, before it is ended."""
_LOOK_S = 0.05


def stop_college(*, drain: bool) -> str:
    """End the college and wait until it is gone; with ``drain`` it finishes its answers first, however long they take.

    Raises:
        CoeError: it does not end.
    """
    deadline = time.monotonic() + _BETWEEN_S
    while (client := find()) is None and not wait_until_gone(_LOOK_S) and time.monotonic() < deadline:
        pass
    if client is not None:
        with contextlib.suppress(DeviceLost), contextlib.closing(client):  # gone, or stuck, since it was found
            client.stop(drain=drain)
            if wait_until_gone(None if drain else _END_S):
                return "the college has ended"
    if end_unresponsive():
        return "the college did not answer and was ended"
    return "no college is running" if client is None else "the college has ended"


def unload_model(model: str, *, wait: bool) -> str:
    """Take one model out when it is idle; wait for that a moment, or with ``wait`` for as long as it takes.

    Raises:
        ModelMissing: the model is not loaded.
        TimedOut: the college says nothing.
    """
    client = find(any_state=True)
    if client is None:
        raise ModelMissing(f"model `{model}` is not loaded: no college is running", "See `coe ps`.")
    client.unload(model)
    deadline = time.monotonic() + _SETTLE_S
    while any(line.name == model for line in client.snapshot().models):
        if not wait and time.monotonic() > deadline:
            return f"{model} goes as soon as it is idle"
        time.sleep(0.05)
    return f"{model} has been taken out"
