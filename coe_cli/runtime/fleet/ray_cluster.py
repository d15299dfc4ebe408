"""The door to Ray (extra ``ray``): import it without its reports home, join a cluster or start one, run its own command line."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, TextIO

from coe_cli.core.fleet.ray_node import NAMESPACE, OBJECT_STORE_BYTES, NodeStart
from coe_cli.errors import DeviceLost, UsageError
from coe_cli.package import install_command

_HOME_REPORTS = "RAY_USAGE_STATS_ENABLED"
_AUTH_MODE = "RAY_AUTH_MODE"
_REACH_S = 10.0
_UNREAD = {"RAY_enable_metrics_collection": "0", "RAY_task_events_report_interval_ms": "0", "RAY_event_stats": "0"}
"""Leaves off the records of a cluster that ends with its batch: nobody reads them, and the models' cores would write them."""


def check_installed() -> None:
    """Look for Ray without importing it.

    Raises:
        UsageError: it is not installed; the hint says how to.
    """
    if importlib.util.find_spec("ray") is None:
        raise _missing()


def ray_module() -> Any:
    """Ray, with its usage statistics off.

    Raises:
        UsageError: it is not installed; the hint says how to.
    """
    os.environ.setdefault(_HOME_REPORTS, "0")
    os.environ.setdefault(
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"
    )  # actors ask for memory, not GPUs: leave them visible
    try:
        import ray
    except ImportError:
        raise _missing() from None
    return ray


def _missing() -> UsageError:
    return UsageError("Ray is not installed", f"Install it: {install_command('ray')}")


class RayCluster:
    """A connection of this process to a cluster. ``own``: it was started for this process and ends with ``close``."""

    def __init__(self, address: str | None, resources: dict[str, float]) -> None:
        """Join the cluster at ``address``; without one, that of this machine, or else start one with ``resources``.

        Raises:
            UsageError: Ray is not installed, or a process can have only one connection and has one.
            DeviceLost: there is no cluster at ``address``.
        """
        wanted = address or os.environ.get("RAY_ADDRESS")
        if wanted and "ray" not in sys.modules and _is_here(wanted) and _has_token():
            # `ray start --head` asks for the token of this machine as soon as there is one; an explicit address sends none
            # by itself, and a head that asks for none does not mind one. Ray reads the mode when it is imported: set later,
            # it would hold for the processes that are started, and not for this one.
            os.environ.setdefault(_AUTH_MODE, "token")
        self.ray = ray_module()
        self._quiet = _Quiet()
        self._quiet.begin()
        self.own = False
        try:
            self._connect(wanted, resources)
        except BaseException:
            self._quiet.end()
            raise

    def _connect(self, wanted: str | None, resources: dict[str, float]) -> None:
        common: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": "CRITICAL"}
        try:
            if wanted:
                _reach(wanted)
            self.ray.init(address=wanted or "auto", **common)
            return
        except (ConnectionError, OSError) as error:
            if wanted:
                raise DeviceLost(
                    f"there is no Ray cluster at {wanted}: {str(error).splitlines()[0]}",
                    "Start its head with `coe node --head --start`. One that asks for a token: set RAY_AUTH_MODE=token and the"
                    " head's RAY_AUTH_TOKEN here. Leave out --address for a cluster of this machine.",
                ) from None
        for name, value in _UNREAD.items():
            os.environ.setdefault(name, value)
        self.ray.init(
            address="local",
            num_cpus=1,
            num_gpus=0,
            resources=resources,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            **common,
        )
        self.own = True

    def nodes(self) -> list[dict[str, float]]:
        """What each node that is alive has in all."""
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def free(self) -> list[dict[str, float]]:
        """What each node that is alive has left; Ray's nodes tell each other of changes with a delay of about 0.1 s."""
        from ray._private.state import available_resources_per_node  # a developer API without another name

        return list(available_resources_per_node().values())

    def close(self) -> None:
        """Leave the cluster, or end it if it is this process's own; safe to call more than once."""
        with contextlib.suppress(Exception):
            self.ray.shutdown()
        self._quiet.end()


def _reach(address: str) -> None:
    """Look whether anything listens at HOST:PORT, for Ray itself would look for minutes.

    Raises:
        OSError: nothing does.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S):
            pass


def _is_here(address: str) -> bool:
    """Whether HOST:PORT is an address of this machine; no name is looked up."""
    import psutil

    host = address.rpartition(":")[0].strip("[]")
    return host == "localhost" or any(
        host == card.address for cards in psutil.net_if_addrs().values() for card in cards
    )


def _has_token() -> bool:
    """Whether Ray would find a token, where it looks for one."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return True
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return (Path(path) if path else Path.home() / ".ray" / "auth_token").is_file()


class _Quiet:
    """Ray tells of lost nodes on stdout, from a thread of its own: what such threads write is dropped meanwhile."""

    def __init__(self) -> None:
        self._before: TextIO | None = None

    def begin(self) -> None:
        self._before = sys.stdout
        sys.stdout = _WithoutRay(self._before)

    def end(self) -> None:
        if self._before is not None and isinstance(sys.stdout, _WithoutRay):
            sys.stdout = self._before
        self._before = None


class _WithoutRay:
    """A stream that passes on everything but what Ray's threads write."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if threading.current_thread().name.startswith("ray_"):
            return len(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


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
