"""What the running college keeps in memory, for commands that run a model in a process of their own."""

from __future__ import annotations

import contextlib
import os

from msgspec import structs

from coe_cli.core.hardware.profile import HardwareProfile
from coe_cli.core.models.model_spec import ModelSpec
from coe_cli.core.names import joined, size_words
from coe_cli.core.providers import spec_of
from coe_cli.core.scheduling.college_status import CollegeStatus, ModelLine
from coe_cli.errors import CoeError
from coe_cli.runtime.folders import folders
from coe_cli.runtime.server.discovery import read_state


def device_of(profile: HardwareProfile) -> str:
    """What tells devices apart whose memory is not shared: the provider, and which of its devices ``COE_DEVICE`` names."""
    chosen = os.environ.get("COE_DEVICE", "") if spec_of(profile.provider).on_card else ""
    return f"{profile.provider}:{chosen}" if chosen else profile.provider


def college_on(device: str | None = None) -> CollegeStatus:
    """The college that runs on ``device`` (None: any), with the models that are in memory; an empty status for none."""
    if read_state(folders().state) is None:  # most often there is none, and then nothing more is imported
        return CollegeStatus()
    from coe_cli.runtime.server import college_client

    with contextlib.suppress(CoeError):
        client = college_client.find()
        if client is not None:
            with contextlib.closing(client):
                status = client.snapshot()
            if device in (None, status.device):
                return structs.replace(status, models=[line for line in status.models if line.held_mb])
    return CollegeStatus()


def college_mb(status: CollegeStatus) -> float:
    """What its models hold."""
    return sum(map(held_mb, status.models))


def held_mb(line: ModelLine) -> float:
    """What a model of the college holds, as it is counted or as it was measured."""
    return max(line.held_mb, line.reserved_mb, line.measured_mb or 0.0)


def kept(status: CollegeStatus) -> str:
    """``the running college keeps 336 MB for `a` and `b```, or an empty text where it keeps none."""
    names = joined([f"`{line.name}`" for line in status.models])
    return f"the running college keeps {size_words(college_mb(status))} for {names}" if names else ""


def low_memory_warning(spec: ModelSpec, profile: HardwareProfile) -> str:
    """What to say before ``spec`` is loaded beside the college, where both do not fit the profile's budget."""
    status = college_on(device_of(profile))
    if not status.models:
        return ""
    from coe_cli.runtime.college.costs import cost_in

    cost, _ = cost_in(profile)(spec)
    needed_mb, pool_mb = cost.need_mb(), profile.vram_budget_mb - profile.fixed_mb
    if needed_mb + college_mb(status) <= profile.pressure_thresholds.critical * pool_mb:
        return ""
    return (
        f"`{spec.name}` takes {size_words(needed_mb)} and {kept(status)}: more than the {size_words(pool_mb)} of profile"
        f" {profile.name} (`coe stop` frees that)"
    )


def out_of_memory_hint(hint: str) -> str:
    """``hint``, and what the running college keeps, if it does."""
    keeps = kept(college_on())
    return f"{hint} {keeps[0].upper()}{keeps[1:]}: `coe stop` frees that.".strip() if keeps else hint
