"""A Ray engine for a batch, from a profile and the address of a cluster."""

from __future__ import annotations

from pathlib import Path

from coe_cli.core.fleet.ray_node import node_resources
from coe_cli.core.hardware.profile import HardwareProfile
from coe_cli.providers.settings import worker_threads
from coe_cli.runtime.college.costs import cost_in
from coe_cli.runtime.fleet.ray_cluster import RayCluster
from coe_cli.runtime.fleet.ray_engine import RayEngine
from coe_cli.runtime.model_folder.on_disk import models_on_disk


def ray_engine(profile: HardwareProfile, models_dir: Path, *, address: str | None, retries: int) -> RayEngine:
    """An engine on the cluster at ``address``; without one on this machine's, or on one of its own with this one node.

    Raises:
        CoeError: Ray is not installed.
        DeviceLost: there is no cluster at ``address``.
    """
    offered = node_resources(profile, models_on_disk(models_dir), worker_threads())
    return RayEngine(RayCluster(address, offered), profile, cost_in(profile), retries=retries)
