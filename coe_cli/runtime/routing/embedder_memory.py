"""What the embedder takes of the budget, as it was measured when it was prepared. Imports nothing heavy."""

from __future__ import annotations

import math
import os
from contextlib import suppress

from coe_cli.core.hardware.profile import HardwareProfile
from coe_cli.core.providers import on_host
from coe_cli.errors import ModelMissing
from coe_cli.runtime.folders import Folders
from coe_cli.runtime.routing.embedder import EMBEDDED, GPU_DEFAULT, embedder_folder, read_info


def with_measured_embedder(profile: HardwareProfile, where: Folders) -> HardwareProfile:
    """``profile`` with the measured memory of the prepared embedder in its fixed part, in place of the file's constant.

    Without a prepared embedder it is the profile itself.
    """
    usual = [EMBEDDED] if on_host(profile.provider) else [GPU_DEFAULT, EMBEDDED]
    names = [name] if (name := os.environ.get("COE_EMBEDDER")) else usual
    info = None
    for name in names:
        with suppress(ModelMissing):  # or damaged
            info = info or read_info(embedder_folder(name, where))
    if info is None or not info.resident_mb:
        return profile
    fixed = profile.vram_components.fixed_overhead
    measured_mb = math.ceil(info.resident_mb)
    return profile.with_fixed(fixed.total - fixed.bge_m3_embeddings + measured_mb, measured_mb)
