"""How fast a device's memory is: a copy larger than its caches, in a process of its own that ends with its memory."""

from __future__ import annotations

import sys
from collections.abc import Callable

from coe_cli.core.hardware.profile import Provider
from coe_cli.core.providers import spec_of
from coe_cli.errors import CoeError
from coe_cli.providers import runtime_of
from coe_cli.providers.base import MeasuresBandwidth
from coe_cli.runtime.child import Message, run_child, serve_as_child


def measure_bandwidth(provider: Provider) -> tuple[float | None, str]:
    """Bandwidth of ``provider``'s memory in 10**9 bytes/s, reads and writes counted, or None and the reason."""
    if not isinstance(runtime_of(provider), MeasuresBandwidth):
        return None, f"memory bandwidth is not measured on {spec_of(provider).label}: shares of it are unknown"
    found: list[float] = []
    try:
        run_child(
            "coe_cli.runtime.bench.bandwidth",
            [provider],
            lambda message: found.append(message["gb_per_s"]),
            task="bandwidth measurement",
        )
    except CoeError as error:
        return None, f"memory bandwidth of {provider} is unknown: {error.message}"
    return found[0], ""


def _work(send: Callable[[Message], None]) -> None:
    from coe_cli.providers.settings import settings_from

    runtime = runtime_of(sys.argv[1])
    assert isinstance(runtime, MeasuresBandwidth)
    send({"gb_per_s": runtime.copy_gb_per_s(settings_from())})


if __name__ == "__main__":
    sys.exit(serve_as_child(_work, "bandwidth measurement"))
