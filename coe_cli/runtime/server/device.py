"""What tells devices apart whose memory is not shared."""

from __future__ import annotations

import os

from coe_cli.core.profile import HardwareProfile


def device_of(profile: HardwareProfile) -> str:
    """The provider, and which of its devices ``COE_DEVICE`` names."""
    chosen = "" if profile.provider == "cpu" else os.environ.get("COE_DEVICE", "")
    return f"{profile.provider}:{chosen}" if chosen else profile.provider
