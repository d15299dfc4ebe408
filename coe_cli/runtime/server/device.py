"""What tells devices apart whose memory is not shared."""

from __future__ import annotations

import os

from coe_cli.core.hardware.profile import HardwareProfile
from coe_cli.core.providers import spec_of


def device_of(profile: HardwareProfile) -> str:
    """The provider, and which of its devices ``COE_DEVICE`` names."""
    chosen = os.environ.get("COE_DEVICE", "") if spec_of(profile.provider).on_card else ""
    return f"{profile.provider}:{chosen}" if chosen else profile.provider
