"""What came of making a Direct3D 12 and a DirectML device on an adapter, as findings."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from coe_cli.core.findings import Finding, error, ok
from coe_cli.core.providers.dml import PROVIDER


class DeviceTrial(Struct, frozen=True):
    """``feature_level`` and ``directml_level`` are the highest with which a device could be made, None where none could."""

    adapter: str
    feature_level: str | None = None
    error: str | None = None
    directml_level: str | None = None
    directml_error: str | None = None


def trial_findings(trials: Sequence[DeviceTrial]) -> list[Finding]:
    """One finding an adapter: an error where no device can be made, with what that means and what to do."""
    return [_finding(trial) for trial in trials]


def _finding(trial: DeviceTrial) -> Finding:
    if trial.feature_level is None:
        return _refused(trial.adapter, "no Direct3D 12 device can be made", trial.error)
    made = f"{trial.adapter}: a Direct3D 12 device can be made, feature level {trial.feature_level}"
    if trial.directml_level is None:
        return _refused(made, "and no DirectML device", trial.directml_error)
    return ok("direct3d", f"{made}, and a DirectML device, feature level {trial.directml_level}")


def _refused(subject: str, what: str, text: str | None) -> Finding:
    meaning = PROVIDER.meaning(text or "")
    reason = meaning.reason if meaning is not None and meaning.reason else text or "no reason given"
    hint = (
        meaning.hint
        if meaning is not None and meaning.hint
        else "Update the graphics driver, or answer on the CPU: -p embedded."
    )
    joint = ": " if what.startswith("no ") else ", "
    return error("direct3d", f"{subject}{joint}{what}: {reason}", hint)
