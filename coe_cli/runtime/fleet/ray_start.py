"""Run Ray's own command line: join a cluster, or be its head."""

from __future__ import annotations

import os
import subprocess
import sys

from coe_cli.core.fleet.ray_node import NodeStart
from coe_cli.errors import DeviceLost


def run_ray(start: NodeStart) -> None:
    """Run ``ray start`` with this interpreter's Ray; what it says goes to stderr.

    Raises:
        DeviceLost: it failed.
    """
    command = [sys.executable, "-m", "ray.scripts.scripts", *start.arguments]
    ended = subprocess.run(
        command, env={**os.environ, **start.environment}, stdout=sys.stderr, stdin=subprocess.DEVNULL
    )
    if ended.returncode:
        raise DeviceLost(
            f"`ray start` ended with code {ended.returncode}", "Read what it says above; `ray stop` ends an older node."
        )
